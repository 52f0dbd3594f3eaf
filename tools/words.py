"""Find phrases that readers stumbled over in pages, docstrings, comments and messages: `python tools/words.py [FILE…]`.

`words.txt` lists them with advice. Exit code 1 if one is found.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_name("words.txt")
PLACES = (
    "README.md",
    "docs/**/*.md",
    *(f"{room}/**/*.py" for room in ("converter", "runtime", "schemas", "tools", "benchmarks")),
)


def phrases(text: str) -> dict[re.Pattern[str], str]:
    """Return the advice for each pattern of a list; lines that begin with `#` are comments.

    A space in a pattern matches the end of a line too, and the `#` of the next line of a comment.
    """
    lines = (line.split(" => ") for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return {re.compile(pattern.replace(" ", r"\s+(?:#:? )?"), re.IGNORECASE): advice for pattern, advice in lines}


def find(text: str, known: dict[re.Pattern[str], str]) -> Iterator[tuple[int, str, str]]:
    """Yield line number, phrase and advice for each phrase in a text."""
    for pattern, advice in known.items():
        for match in pattern.finditer(text):
            yield text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), advice


def files(root: Path, named: Iterable[str]) -> list[Path]:
    """Return the files to read: those named, or every page and module of the project."""
    chosen = [Path(name) for name in named]
    return chosen or sorted({path for place in PLACES for path in root.glob(place) if path.name != Path(__file__).name})


def main(arguments: list[str]) -> int:
    """Print each phrase as `file:line: phrase -> advice` and return the exit status."""
    known = phrases(LIST.read_text(encoding="utf-8"))
    count = 0
    for path in files(ROOT, arguments):
        for line, phrase, advice in sorted(find(path.read_text(encoding="utf-8"), known)):
            count += 1
            print(f"{path}:{line}: {phrase!r} -> {advice}")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
