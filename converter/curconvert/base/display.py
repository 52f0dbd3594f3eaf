"""Makes text from files harmless where people read it: on a terminal and in documents."""

from __future__ import annotations

import re

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Controls of a terminal (also those above 0x7f), line and paragraph separators, and what reverses the order of letters;
# halves of surrogate pairs cannot be written at all. A line end and a tab do no harm.
_HARMFUL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def harmless(text: str) -> str:
    """Return a text of several lines with all that could control a terminal, or reorder what it shows, replaced."""
    return _HARMFUL.sub(_REPLACEMENT, text)


def one_line(text: str) -> str:
    """Return a text with all characters replaced that cannot be printed, line ends and tabs among them."""
    return "".join(character if character.isprintable() else _REPLACEMENT for character in text)
