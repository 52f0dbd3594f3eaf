"""Measure how easy each page is to read: Flesch reading ease and the mean length of a sentence, in words.

    python tools/readability.py                # a table of all pages
    python tools/readability.py --check        # the same; exit 1 if a page is above a limit

Only prose counts: code blocks, tables, comments and front matter are left out. Inline code counts as one word, a link
as its text. textstat computes the score (Flesch 1948), with the CMU dictionary's syllables.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import textstat

ROOT = Path(__file__).resolve().parents[1]
MINIMUM_EASE = 50.0
MAXIMUM_LENGTH = 20.0
MINIMUM_WORDS = 30  # below this the score says nothing


@dataclass(frozen=True)
class Readability:
    """How easy one page is to read: `ease` is Flesch's score, `length` the mean words in a sentence."""

    words: int
    ease: float
    length: float

    @property
    def passed(self) -> bool:
        """Whether the page keeps both limits."""
        return self.words < MINIMUM_WORDS or (self.ease > MINIMUM_EASE and self.length < MAXIMUM_LENGTH)


def pages(root: Path) -> list[Path]:
    """Return the README and every page of the site, the longest first."""
    return sorted([root / "README.md", *(root / "docs").rglob("*.md")], key=lambda path: -path.stat().st_size)


def prose(markdown: str) -> str:
    """Return the sentences of a page as plain text, each paragraph, item and heading ended by a full stop."""
    text = re.sub(r"\A---\n.*?\n---\n", "", markdown, flags=re.DOTALL)
    text = re.sub(r"^( *)(```|~~~).*?^\1\2[^\n]*$", "\n", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->|<[^>\n]+>", "", text, flags=re.DOTALL)
    return "\n".join(_plain(block) for block in _blocks(text))


def _blocks(text: str) -> Iterator[str]:
    """Yield paragraphs and list items, without tables, code by indentation, headings and directives."""
    block: list[str] = []
    in_code = False
    for line in [*text.splitlines(), ""]:
        in_code = line.startswith("    ") and (in_code or not block)
        skipped = in_code or re.match(r"\s*(\||#|:::|!!!|\?\?\?|===|!\[)", line) is not None
        if not line.strip() or skipped or re.match(r"\s*([-*+]|\d+\.)\s", line):
            if block:
                yield " ".join(block)
            block = []
        if line.strip() and not skipped:
            block.append(re.sub(r"^\s*([-*+]|\d+\.)\s+", "", line).strip())


def _plain(block: str) -> str:
    text = re.sub(r"`+[^`]+`+", "code", block)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)(\{[^}]*\})?|\[([^\]]*)\]\[[^\]]*\]", r"\1\3", text)
    text = re.sub(r"[*_]{1,2}(\S.*?\S|\S)[*_]{1,2}", r"\1", text)
    text = re.sub(r"(\d)\.(\d)", r"\1\2", text)  # a decimal point does not end a sentence
    text = re.sub(r"\b(e\.g|i\.e|vs|arXiv)\.", r"\1", text)
    return text if text.rstrip()[-1:] in {".", "!", "?"} else text.rstrip(" :;,") + "."


def measure(markdown: str) -> Readability:
    """Return the readability of a page's prose."""
    text = prose(markdown)
    words = textstat.lexicon_count(text)
    if not words:
        return Readability(0, 100.0, 0.0)
    return Readability(words, textstat.flesch_reading_ease(text), textstat.words_per_sentence(text))


def main() -> int:
    """Print the table and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit 1 if a page is above a limit")
    parser.add_argument("--root", type=Path, default=ROOT, help="the project to read")
    options = parser.parse_args()
    failed = 0
    for path in pages(options.root):
        found = measure(path.read_text(encoding="utf-8"))
        failed += not found.passed
        mark = "" if found.passed else "  <- simplify"
        print(f"{found.ease:6.1f} {found.length:5.1f} {found.words:6d}  {path.relative_to(options.root)}{mark}")
    return int(options.check and failed > 0)


if __name__ == "__main__":
    sys.exit(main())
