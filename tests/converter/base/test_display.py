"""Text from files on a terminal: whatever could control it is replaced, and languages stay readable."""

from __future__ import annotations

import pytest

from curconvert.base.display import harmless, one_line

ATTACKS = {
    "clear the screen": "\x1b[2J",
    "hyperlink": "\x1b]8;;http://evil\x1b\\",
    "clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "title, C1 introducer": "\x9d0;title\x9c",
    "C1 control sequence": "\x9b2J",
    "carriage return": "good\rbad",
    "bell": "\a",
    "backspace": "a\b",
    "right-to-left override": "\u202egnp.exe",
    "left-to-right isolate": "\u2066x\u2069",
    "line separator": "a\u2028b",
    "delete": "\x7f",
    "lone surrogate": "\udc9b",
}


@pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS)
def test_controls_are_replaced(text: str) -> None:
    """In names and in texts; a replacement takes the place of one character."""
    for shown in (harmless(text), one_line(text)):
        assert len(shown) == len(text)
        assert "\N{REPLACEMENT CHARACTER}" in shown
        assert not any(ord(character) < 32 or 0x7F <= ord(character) < 0xA0 for character in shown)
        assert not any("\u2028" <= character <= "\u202e" or "\ud800" <= character <= "\udfff" for character in shown)


def test_a_name_is_one_line_and_a_text_has_several() -> None:
    """A name with a line end cannot pretend to be a line of output."""
    assert one_line("a\n\tverified") == "a��verified"
    assert harmless("a\n\tb") == "a\n\tb"


@pytest.mark.parametrize("text", ["größe 模型　名", "👩‍💻 नमस्ते", "می‌خواهم", "שלום עולם", "→ ≤ ‖x‖₂", "a\u00a0b"])
def test_texts_in_every_language_stay(text: str) -> None:
    """Joiners of emoji and Persian, wide spaces and letters from right to left among them."""
    assert harmless(text) == text
