"""Options that name a file to write: refused before the work, and whole or absent after it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import pytest

from curconvert.cli import main
from curconvert.cli.options import FilePath
from curconvert.cli.output_file import OutputFile
from curconvert.jobs import verify as job
from curconvert_runtime.checks.report import Check, VerificationReport
from support.command_line import call

READ = {"artifact", "config", "text"}
FOLDERS = {"out"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Verifications without a model: each one passes as the last entry says, and adds one."""
    found = [True]

    def verify(artifact: Path, *_: Any, **__: Any) -> VerificationReport:
        found.append(found[-1])
        return VerificationReport(str(artifact), (Check("a.b", found[-1], "as asked"),))

    monkeypatch.setattr(job, "verify_artifact", verify)
    return found


def verify(tmp_path: Path, file: Path | str) -> Any:
    return call("verify", tmp_path / "out", "--junit", file, "--quiet")


def test_every_path_is_one_to_read_a_folder_to_make_or_a_checked_file() -> None:
    """A new option for a file has to say which."""
    found = set()
    for command in main.commands.values():
        for option in command.params:
            if isinstance(option.type, FilePath | click.Path | click.File) and option.name not in READ | FOLDERS:
                assert isinstance(option.type, OutputFile), (command.name, option.name)
                found.add(option.name)
    assert found == {"junit"}


@pytest.mark.parametrize("file", ["verify.xml", "a/verify.xml", "a/b/c/verify.xml"])
def test_missing_folders_are_made(tmp_path: Path, calls: list[bool], file: str) -> None:
    """As for an output folder; a second report replaces the first."""
    for _ in range(2):
        result = verify(tmp_path, tmp_path / file)
        assert result.exit_code == 0, result.output
        assert ElementTree.parse(tmp_path / file).getroot().get("tests") == "1"
        assert [path.name for path in (tmp_path / file).parent.iterdir()] == ["verify.xml"]


@pytest.mark.parametrize(
    ("file", "message"),
    [("folder", "is a folder"), ("file/verify.xml", "is a file, not a folder"), ("file/a/b.xml", "is a file, not a")],
)
def test_what_cannot_be_a_file_is_refused_before_the_work(
    tmp_path: Path, calls: list[bool], file: str, message: str
) -> None:
    """Nothing was verified, nothing was made."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    result = verify(tmp_path, tmp_path / file)
    assert (result.exit_code, len(calls)) == (2, 1)
    assert message in result.stderr
    assert {path.name for path in tmp_path.rglob("*")} == {"folder", "file"}


@pytest.mark.parametrize("file", ["verify.xml", "a/verify.xml", "old.xml"])
def test_a_place_without_permission_is_refused_before_the_work(
    tmp_path: Path, calls: list[bool], monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """Of the file if it exists, otherwise of the folder that would get it."""
    (tmp_path / "old.xml").write_text("old")
    monkeypatch.setattr(os, "access", lambda *_: False)
    result = verify(tmp_path, tmp_path / file)
    assert (result.exit_code, len(calls)) == (2, 1)
    assert "no permission to write" in result.stderr
    assert (tmp_path / "old.xml").read_text() == "old"


@pytest.mark.parametrize(("passes", "code"), [(True, 6), (False, 3)])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_report_that_does_not_fit_is_no_success(
    tmp_path: Path, calls: list[bool], monkeypatch: pytest.MonkeyPatch, number: int, passes: bool, code: int
) -> None:
    """The old report stays, no half of the new one is left; a failed verification counts more."""
    (tmp_path / "verify.xml").write_text("old")
    calls[-1] = passes

    def full(_handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    result = verify(tmp_path, tmp_path / "verify.xml")
    assert result.exit_code == code, result.output
    assert passes == ("no space left on the disk" in result.stderr)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("verify.xml", "old")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_device_gets_the_report_itself(tmp_path: Path, calls: list[bool]) -> None:
    """It is not replaced by a file."""
    assert verify(tmp_path, "/dev/full").exit_code == 6
    assert Path("/dev/full").is_char_device()
    assert verify(tmp_path, os.devnull).exit_code == 0
    assert Path(os.devnull).is_char_device()
