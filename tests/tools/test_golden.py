"""The regression tool: what it says of two lists, and that its cases leave no method, command or option out."""

from __future__ import annotations

import importlib
import shlex
from pathlib import Path
from types import ModuleType

import click
import pytest

from curconvert.cli import main
from curconvert.methods.core.registry import methods

TOOLS = Path(__file__).resolve().parents[2] / "tools"
# No GPU, no cluster and no network here; the rest say how something is told or timed, not what it is.
LEFT_OUT = {
    "--device", "--executor", "--revision", "--text-field", "--no-resume", "--resume", "--debug", "--overwrite",
    "--no-share", "--no-sequential", "--torch", "--threads", "--rounds", "--batch", "--provider", "--max-parity",
    "--learning-rate", "--patience", "--hidden", "--ce",
}  # fmt: skip


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))


def _module(name: str) -> ModuleType:
    return importlib.import_module(name)


@pytest.mark.usefixtures("tools")
def test_tells_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("a!stdout  1\na/same  2\na/x  3\nb/gone  4\n")
    new.write_text("a!stdout  9\na/same  2\na/x  3\nc/new  5\n")
    assert _module("golden").compare(old, old) == 0
    capsys.readouterr()
    assert _module("golden").compare(old, new) == 1
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:-1] == [
        ["a"], ["changed", "a!stdout"], ["b"], ["only", "before", "b/gone"], ["c"], ["only", "after", "c/new"],
    ]  # fmt: skip


@pytest.mark.usefixtures("tools")
def test_runs_every_method_command_and_option() -> None:
    used = [shlex.split(line) for line in _module("golden_cases").tiny_cases().values()]
    given = {word for words in used for word in words}
    assert {words[words.index("--method") + 1] for words in used if "--method" in words} >= set(methods())
    assert {words[0] for words in used} >= set(main.commands)
    for name, command in main.commands.items():
        for option in (part for part in command.params if isinstance(part, click.Option)):
            spellings = {*option.opts, *option.secondary_opts}
            assert spellings & (given | LEFT_OUT), f"{name} {option.opts[0]}"
