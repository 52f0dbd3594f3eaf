"""The command line in this process, and what a refusal looks like."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from curconvert.cli import main


def call(*arguments: str | Path, text: str | None = None) -> Result:
    """Run a command; `text` is its standard input."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=text)


def refused(result: Result, code: int, *parts: str) -> None:
    """Check that a call failed with one line on stderr, which holds some parts, and nothing on stdout."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]
