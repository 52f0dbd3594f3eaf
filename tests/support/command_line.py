"""The command line in this process, what a refusal looks like, and whether files stayed as they were."""

from __future__ import annotations

import hashlib
import stat
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
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


def snapshot(folder: Path) -> dict[str, tuple[object, ...]]:
    """Describe all that is below a folder: kind, permissions, a file's bytes and time of change, a link's target."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content: tuple[object, ...] = ()
        if stat.S_ISREG(status.st_mode):
            content = (status.st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        elif stat.S_ISLNK(status.st_mode):
            content = (path.readlink(),)
        found[str(path.relative_to(folder))] = (status.st_mode, *content)
    return found
