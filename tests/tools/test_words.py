"""The list of phrases that readers stumbled over is looked for line by line, and across lines."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from support.tools import load_tool

LIST = "# a comment\n\n\\bby and by\\b => gradually\n\\bat hand\\b => available\n"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The script."""
    return load_tool("words")


def found(tool: ModuleType, text: str) -> list[tuple[int, str, str]]:
    """Return what a short list finds in a text."""
    return list(tool.find(text, tool.phrases(LIST)))


def test_a_phrase_is_found_with_its_line(tool: ModuleType) -> None:
    """And with the advice of the list."""
    assert found(tool, "one\ntwo\nit grows By and by.\n") == [(3, "By and by", "gradually")]


def test_a_phrase_over_two_lines_is_found(tool: ModuleType) -> None:
    """The line is the one where it begins."""
    assert found(tool, "one\nit grows by and\nby.\n") == [(2, "by and by", "gradually")]


@pytest.mark.parametrize("mark", ["#", "#:"])
def test_a_phrase_over_two_comment_lines_is_found(tool: ModuleType, mark: str) -> None:
    """The comment's mark between its words does not hide it."""
    ((line, _, advice),) = found(tool, f"x = 1\n    {mark} the memory at\n    {mark} hand\n")
    assert (line, advice) == (2, "available")


def test_part_of_a_word_is_no_phrase(tool: ModuleType) -> None:
    """The list's word boundaries hold."""
    assert not found(tool, "what handles this; standby and bypass")


def test_the_project_list_can_be_read(tool: ModuleType) -> None:
    """Every line of words.txt is a pattern with advice."""
    known = tool.phrases(tool.LIST.read_text(encoding="utf-8"))
    assert len(known) > 20
    assert all(known.values())


def test_the_script_names_the_place_and_fails(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line for each phrase; exit code 1."""
    page = tmp_path / "page.md"
    page.write_text("fine\nthe cores at hand\n", encoding="utf-8")
    assert tool.main([str(page)]) == 1
    assert capsys.readouterr().out == f"{page}:2: 'at hand' -> available\n"
    page.write_text("fine\n", encoding="utf-8")
    assert tool.main([str(page)]) == 0
