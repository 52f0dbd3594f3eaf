"""Tells which tensors the user leaves out, and lists tensors in messages."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase


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
