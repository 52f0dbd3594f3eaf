"""Pages are scored by their prose alone, and a page above a limit fails the check."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from support.tools import load_tool

PLAIN = "The tool reads a file. It writes a new file. You can check the result.\n\n" * 4
LONG = f"The tool {'reads a file and then it ' * 12}stops.\n\n"
HARD = "Characterization necessitates disproportionately sophisticated interdisciplinary considerations.\n\n" * 8


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The script."""
    return load_tool("readability")


def test_plain_sentences_pass(tool: ModuleType) -> None:
    """Short words, short sentences."""
    assert tool.measure(PLAIN).passed


def test_a_long_sentence_fails(tool: ModuleType) -> None:
    """The mean length is above the limit."""
    found = tool.measure(LONG)
    assert found.length > tool.MAXIMUM_LENGTH
    assert not found.passed


def test_long_words_fail(tool: ModuleType) -> None:
    """Short sentences do not save them."""
    found = tool.measure(HARD)
    assert found.ease < tool.MINIMUM_EASE
    assert not found.passed


@pytest.mark.parametrize(
    "ignored",
    [
        f"| {LONG.strip()} | {LONG.strip()} |\n",
        f"```text\n{LONG}```\n",
        f"    {LONG.strip()}\n",
        f"<!-- {LONG.strip()} -->\n",
        f"# {LONG.strip()}\n",
        f"---\ntitle: {LONG.strip()}\n---\n",
    ],
    ids=["table", "fence", "indented code", "comment", "heading", "front matter"],
)
def test_what_is_no_prose_does_not_count(tool: ModuleType, ignored: str) -> None:
    """The score is that of the sentences around it."""
    assert tool.measure(f"{ignored}\n{PLAIN}") == tool.measure(PLAIN)


def test_items_are_sentences_of_their_own(tool: ModuleType) -> None:
    """A list without full stops is no long sentence."""
    assert tool.measure("- you can read the first item\n- you can read the second item\n" * 10).passed


def test_a_link_counts_as_its_text(tool: ModuleType) -> None:
    """Its address is not read."""
    assert tool.prose("See [the page](https://example.com/a/b/c).") == "See the page."


def test_the_check_fails_on_a_hard_page_only(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--check` turns the mark in the table into the exit code."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(PLAIN, encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["readability.py", "--check", "--root", str(tmp_path)])
    assert tool.main() == 0
    (tmp_path / "docs" / "hard.md").write_text(LONG, encoding="utf-8")
    assert tool.main() == 1
    assert "docs/hard.md  <- simplify" in capsys.readouterr().out
