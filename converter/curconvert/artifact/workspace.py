"""The folder in which one run at a time makes an output, kept when the run is interrupted."""

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
_OWNER = "process"  # not in the lock's file, which the library may empty and some systems let nobody else read
RESUME = "run the same command again to continue"


@dataclass(frozen=True)
class Workspace:
    """Where an output is made.

    Attributes:
        artifact: Becomes the output.
        evidence: Keeps what the passes over the original found.
        journal: Of what is finished.
    """

    artifact: Path
    evidence: Path
    journal: Journal


def workspace_of(out: Path) -> Path:
    """Return the folder beside an output in which it is made."""
    out = out.resolve()
    return out.parent / f".{out.name}.curconvert"


@contextmanager
def workspace(out: Path, fingerprint: Mapping[str, str], *, resume: bool) -> Iterator[Workspace]:
    """Yield the folder's parts, as an unfinished run has left them or empty.

    When the context ends the folder goes, unless going on is of use: after an interruption or a fault of the system.

    Args:
        out: The output.
        fingerprint: What its bytes depend on, by name.
        resume: Go on from an unfinished run; otherwise its work is dropped.

    Raises:
        InputError: Another run is at work on this output, or the unfinished run was of something else.
        BackendError: The disk is full.
    """
    folder, created = workspace_of(out), missing_parents(out)
    with _full_disk_named(folder.parent), _locked(folder, out):
        space = _open(folder, fingerprint, resume)
        try:
            yield space
        except (InputError, UnsupportedError, VerificationError, IntegrityError):
            _remove(folder, created)  # the same command would come to the same end
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
    # Without the artifact it is what a run has left that published it and was stopped before it had cleaned up.
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
    """Take the lock, which the system gives back however its owner ends."""
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
        except (FileNotFoundError, FileExistsError):  # an owner that ends has just removed the folder
            continue
        except Timeout:
            if not path.exists():
                continue
            raise InputError(
                f"{out}: another conversion is writing it (process {_owner(folder)}); wait for it, or choose another "
                "output"
            ) from None
        # An owner that ends removes the file: then this lock is on nothing, and on another file is where it was.
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
    """Refuse a folder of this name that somebody else has made: what is in it will be trusted, or deleted."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return
    ours = stat.S_ISDIR(status.st_mode) and (not hasattr(os, "getuid") or status.st_uid == os.getuid())
    # One look at all names: others come and go meanwhile, and the lock is the first of them and the last.
    names = [path.name for path in folder.iterdir()] if ours else []
    if not ours or (names and _LOCK not in names):
        raise InputError(f"{folder}: is no folder that curconvert made for this user; remove it yourself")


def _clear(folder: Path) -> None:
    """Delete everything but the lock and its owner's number, the journal first: what it refers to must outlive it."""
    (folder / JOURNAL).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name not in (_LOCK, _OWNER):
            path.unlink()


def _remove(folder: Path, created: list[Path]) -> None:
    with suppress(OSError):  # what cannot be deleted must not hide how the work ended
        _clear(folder)
        (folder / _OWNER).unlink(missing_ok=True)
        (folder / _LOCK).unlink()  # last: by it the folder is known as ours
        folder.rmdir()
    for parent in created:
        with suppress(OSError):  # not empty: it holds the published folder
            parent.rmdir()
