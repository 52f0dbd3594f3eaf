"""Manages the working folder beside an output. One run at a time uses it; it stays after an interruption."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from curconvert.artifact.folder import missing_parents
from curconvert.base.durable import is_full
from curconvert.base.errors import BackendError, InputError, IntegrityError, UnsupportedError, VerificationError
from curconvert.journal.store import JOURNAL, Journal

_LOCK = "lock"
_OWNER = "process"  # not in the lock file: filelock may empty it, and some systems let no other process read it
RESUME = "run the same command again to continue"


@dataclass(frozen=True)
class Workspace:
    """Parts of the working folder of one output.

    Attributes:
        artifact: Folder that becomes the output.
        evidence: Folder with results of the passes over the original.
        journal: Record of the finished steps.
    """

    artifact: Path
    evidence: Path
    journal: Journal


def workspace_of(out: Path) -> Path:
    """Return the path of the working folder beside an output."""
    out = out.resolve()
    return out.parent / f".{out.name}.curconvert"


@contextmanager
def workspace(out: Path, fingerprint: Mapping[str, str], *, resume: bool) -> Iterator[Workspace]:
    """Lock the working folder and yield its parts: those of an unfinished run, or empty ones.

    The folder is deleted when the context ends. It stays after an interruption or a system error, so that the next
    run can resume.

    Args:
        out: The output.
        fingerprint: What the output's bytes depend on, by name.
        resume: Resume an unfinished run; otherwise delete its work.

    Raises:
        InputError: Another run is writing this output, or the unfinished run has another fingerprint.
        BackendError: The disk is full.
    """
    folder, created = workspace_of(out), missing_parents(out)
    with _full_disk_named(folder.parent), _locked(folder, out):
        space = _open(folder, fingerprint, resume)
        try:
            yield space
        except (InputError, UnsupportedError, VerificationError, IntegrityError):
            _remove(folder, created)  # running the same command again would fail in the same way
            raise
        _remove(folder, created)


@contextmanager
def _full_disk_named(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise BackendError(f"{place}: no space left on the disk; free some and {RESUME}") from error
        raise


def _open(folder: Path, fingerprint: Mapping[str, str], resume: bool) -> Workspace:
    artifact, evidence = folder / "artifact", folder / "evidence"
    # If the artifact folder is missing, a run published it and was stopped before it cleaned up.
    if resume and (folder / JOURNAL).exists() and artifact.is_dir():
        return Workspace(artifact, evidence, Journal.open(folder, fingerprint))
    _clear(folder)
    artifact.mkdir()
    evidence.mkdir()
    return Workspace(artifact, evidence, Journal.create(folder, fingerprint))


@contextmanager
def _locked(folder: Path, out: Path) -> Iterator[None]:
    lock = _lock(folder, out)
    try:
        (folder / _OWNER).write_text(str(os.getpid()))
        yield
    finally:
        lock.release()


def _lock(folder: Path, out: Path) -> FileLock:
    """Take the lock. The system releases it when its process ends, in any way."""
    path = folder / _LOCK
    lock = FileLock(path, timeout=0, mode=0o600)
    while True:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            _check_ours(folder)
            folder.mkdir(mode=0o700, exist_ok=True)
            path.touch(mode=0o600)
            file = path.stat().st_ino
            lock.acquire()
        except (FileNotFoundError, FileExistsError):  # the previous owner just removed the folder
            continue
        except Timeout:
            if not path.exists():
                continue
            raise InputError(
                f"{out}: another conversion is writing it (process {_owner(folder)}); wait for it, or choose another "
                "output"
            ) from None
        # The previous owner may have removed the file. Then this lock is on a deleted file, so try again.
        with suppress(FileNotFoundError):
            if path.stat().st_ino == file:
                return lock
        lock.release()


def _owner(folder: Path) -> str:
    try:
        return (folder / _OWNER).read_text()
    except FileNotFoundError:
        return "unknown"


def _check_ours(folder: Path) -> None:
    """Raise `InputError` if another user or program made the folder: its contents would be trusted or deleted."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return
    ours = stat.S_ISDIR(status.st_mode) and (not hasattr(os, "getuid") or status.st_uid == os.getuid())
    # List all names once, because another run may add or delete files. It creates the lock first and deletes it last.
    names = [path.name for path in folder.iterdir()] if ours else []
    if not ours or (names and _LOCK not in names):
        raise InputError(f"{folder}: is no folder that curconvert made for this user; remove it yourself")


def _clear(folder: Path) -> None:
    """Delete all but the lock and the owner's process number; the journal first, because it refers to the others."""
    (folder / JOURNAL).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (_LOCK, _OWNER):
            path.unlink()


def _remove(folder: Path, created: list[Path]) -> None:
    with suppress(OSError):  # a failed deletion must not hide the error of the run
        _clear(folder)
        (folder / _OWNER).unlink(missing_ok=True)
        (folder / _LOCK).unlink()  # last, because `_check_ours` recognizes the folder by the lock
        folder.rmdir()
    for parent in created:
        with suppress(OSError):  # not empty: it holds the published folder
            parent.rmdir()
