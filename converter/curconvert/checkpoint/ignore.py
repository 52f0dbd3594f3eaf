"""Tells which tensors the user leaves out, and lists tensors in messages."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape

_NAMED = 3  # tensors that a message names one by one
_GROUPS = 8  # options in a message, at most


@dataclass(frozen=True)
class Ignored:
    """Patterns for tensors that the model does not know.

    Attributes:
        patterns: `*` stands for any text, `?` for one character, `[…]` for one of several.
    """

    patterns: tuple[str, ...] = ()

    def covers(self, name: str) -> bool:
        """Tell whether a pattern matches a tensor's name."""
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)

    def notices(self, left_out: Collection[str]) -> list[str]:
        """Return what to say about the patterns: what they left out, and which of them match nothing."""
        idle = [p for p in self.patterns if not any(fnmatchcase(name, p) for name in left_out)]
        found = [f"--ignore leaves out {some(left_out)}"] if left_out else []
        return [*found, *(f"--ignore {pattern!r:.200} matches no tensor" for pattern in idle)]


def some(names: Collection[str], shown: int = 3) -> str:
    """Return a short list of tensors for a message: `tensor a`, or `5 tensors (a, b, c, …)`."""
    listed = ", ".join(sorted(names)[:shown])
    return f"tensor {listed}" if len(names) == 1 else f"{len(names)} tensors ({listed}{', …' * (len(names) > shown)})"


def ignore_options(names: Collection[str], others: Collection[str]) -> str:
    """Return the options that leave out tensors and none of the others, ready for a shell.

    Up to three tensors are named; more are grouped by the modules around them.
    """
    if len(names) <= _NAMED:
        return " ".join(ignore_option(name) for name in sorted(names))
    groups = dict.fromkeys(ignore_option(*around(name, others)) for name in sorted(names))
    return " ".join(list(groups)[:_GROUPS])


def ignore_option(name: str, end: str = "") -> str:
    """Return the option that leaves out a tensor, or with the end `*` all whose names begin so."""
    literal = "".join(character if character.isprintable() else "?" for character in escape(name))
    return "--ignore '" + f"{literal}{end}".replace("'", "'\"'\"'") + "'"


def around(name: str, others: Collection[str]) -> tuple[str, str]:
    """Return the shortest path of modules to a name that leads to none of the others, and `*`; or the name itself."""
    modules = name.split(".")[:-1]
    paths = [".".join(modules[:count]) + "." for count in range(1, len(modules) + 1)]
    return next(((path, "*") for path in paths if not any(other.startswith(path) for other in others)), (name, ""))
