"""A disk that fills up under a command: exit code 6 with the room that is missing, and nothing half-written."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

from curconvert.artifact.lock import workspace_of
from curconvert.base.durable import DiskFullError
from support.commands import NAMES, Commands
from support.killed import job_with_small_files

ROOM = re.compile(
    r"/[^./]+: no space left on the disk \([\d.]+ \w+ free, about [\d.]+ \w+ (more needed|to write; a quota or .*)\); "
    "free some and run the same command again$"
)


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """Make the inputs once."""
    return Commands.with_inputs(tmp_path_factory.mktemp("home"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize(
    ("name", "call", "at"),
    [("export", "pwrite", 1), ("export", "ftruncate", 1), ("export", "fsync", 2), ("resize", "pwrite", 9)],
)
def test_a_full_disk_leaves_nothing(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: str, at: int, number: int
) -> None:
    """Whatever the system calls it: one line, and room for other things."""
    real, count = getattr(os, call), 0

    def full(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count >= at:
            raise OSError(number, os.strerror(number))
        return real(*arguments)

    monkeypatch.setattr(os, call, full)
    with pytest.raises(DiskFullError, match=ROOM):
        commands.job(name, tmp_path / "out")()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "limit"), [*((name, 300) for name in NAMES), ("export", 30_000), ("heal", 30_000)])
def test_the_limit_of_the_system_is_a_full_disk(commands: Commands, tmp_path: Path, name: str, limit: int) -> None:
    """Every command, with the first small file or with the first large one; what can be resumed stays."""
    found = job_with_small_files(commands.job(name, tmp_path / "out"), limit)
    assert found is not None
    assert found[0] == "DiskFullError", found
    assert ROOM.search(found[1]), found
    assert {path.name for path in tmp_path.iterdir()} <= {workspace_of(tmp_path / "out").name}
