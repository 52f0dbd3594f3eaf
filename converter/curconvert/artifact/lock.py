"""Locks the working folder beside an output, so that one run at a time makes it and finds what a dead one left."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from curconvert.base.durable import full_disk_named
from curconvert.base.errors import InputError
from curconvert.journal.store import JOURNAL

_LOCK = "lock"
_OWNER = "process"  # not in the lock file: filelock may empty it, and some systems let no other process read it
_ASIDE = "replaced"  # the output of an earlier run, for as long as it takes to rename the new one
PARTIAL = "new.partial"
ARTIFACT = "artifact"


def workspace_of(out: Path) -> Path:
    """Return the path of the working folder beside an output."""
    out = out.resolve()
    return out.parent / f".{out.name}.curconvert"


@contextmanager
def locked(out: Path, needed: int = 0) -> Iterator[Path]:
    """Lock the working folder of an output and yield it, without what a dead run cannot resume.

    The folder stays when the context ends; `remove` deletes it.

    Args:
        out: The output.
        needed: About how many bytes the run has on disk at once; named if the disk is full. 0 is unknown: the caller
            of the caller knows.

    Raises:
        InputError: Another run is writing this output.
        DiskFullError: The disk is full.
    """
    folder = workspace_of(out)
    with full_disk_named(folder, needed):
        lock = _lock(folder, out)
        try:
            (folder / _OWNER).write_text(str(os.getpid()))
            _restore(folder, out.resolve())
            for left in folder.glob(f"{PARTIAL}*"):
                shutil.rmtree(left)
            yield folder
        finally:
            lock.release()


def resumable(folder: Path) -> bool:
    """Tell whether a working folder holds a run that can be resumed."""
    # If the artifact folder is missing, a run published it and was stopped before it cleaned up.
    return (folder / JOURNAL).exists() and (folder / ARTIFACT).is_dir()


def tidy(out: Path) -> None:
    """Delete what dead runs left beside an output, and put back an output that one of them had moved aside.

    Work that can be resumed stays, and so does all that a living run uses.
    """
    if workspace_of(out).is_dir():
        # The run that needs the folder says what is wrong with it.
        with suppress(OSError, InputError), locked(out) as folder:
            if not resumable(folder):
                remove(folder)


def replace_output(work: Path, out: Path) -> None:
    """Rename a finished folder in the working folder to the output; an old output is deleted, or put back."""
    if not out.exists() or not any(out.iterdir()):
        work.rename(out)
        return
    folder = work.parent
    (folder / _ASIDE).mkdir()
    try:
        out.rename(folder / _ASIDE / out.name)
        work.rename(out)
    finally:
        _restore(folder, out)  # this also runs after Ctrl-C


def _restore(folder: Path, out: Path) -> None:
    """Put back an output that was moved aside, unless the new one is in its place. It is not deleted if that fails."""
    aside = folder / _ASIDE
    if aside.is_dir():
        if not out.exists() and (aside / out.name).exists():
            (aside / out.name).rename(out)
        shutil.rmtree(aside, ignore_errors=True)


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


def clear(folder: Path) -> None:
    """Delete all but the lock and the owner's process number; the journal first, because it refers to the others."""
    (folder / JOURNAL).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (_LOCK, _OWNER):
            path.unlink()


def remove(folder: Path, created: list[Path] | None = None) -> None:
    """Delete a working folder, and those of its parents that were made for it and are empty."""
    with suppress(OSError):  # a failed deletion must not hide the error of the run
        if (folder / _ASIDE).exists():  # it could not be put back
            return
        clear(folder)
        (folder / _OWNER).unlink(missing_ok=True)
        (folder / _LOCK).unlink()  # last, because `_check_ours` recognizes the folder by the lock
        folder.rmdir()
    for parent in created or []:
        with suppress(OSError):  # not empty: it holds the published folder
            parent.rmdir()
