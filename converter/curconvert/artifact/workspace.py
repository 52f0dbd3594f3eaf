"""The folder in which one run at a time makes an output, kept when the run is interrupted."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from curconvert.artifact.folder import missing_parents
from curconvert.base.durable import is_full
from curconvert.base.errors import BackendError, InputError, IntegrityError, UnsupportedError, VerificationError
from curconvert.journal.store import JOURNAL, Journal

_LOCK = "lock"
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
    handle = _lock(folder, out)
    try:
        yield
    finally:
        os.close(handle)


def _lock(folder: Path, out: Path) -> int:
    """Take the lock, which the system gives back however its owner ends."""
    path = folder / _LOCK
    while True:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            _check_ours(folder)
            folder.mkdir(mode=0o700, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:  # an owner that ends has just removed the folder
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(handle, 20).decode(errors="replace")
            os.close(handle)
            raise InputError(
                f"{out}: another conversion is writing it (process {owner}); wait for it, or choose another output"
            ) from None
        # An owner that ends removes the file: then this lock is on nothing, and on another file is where it was.
        if path.exists() and path.stat().st_ino == os.fstat(handle).st_ino:
            os.ftruncate(handle, 0)
            os.pwrite(handle, str(os.getpid()).encode(), 0)
            return handle
        os.close(handle)


def _check_ours(folder: Path) -> None:
    """Refuse a folder of this name that somebody else has made: what is in it will be trusted, or deleted."""
    if not folder.exists() and not folder.is_symlink():
        return
    status = folder.lstat()
    ours = folder.is_dir() and not folder.is_symlink() and status.st_uid == os.getuid()
    if not ours or not ((folder / _LOCK).exists() or not any(folder.iterdir())):
        raise InputError(f"{folder}: is no folder that curconvert made for this user; remove it yourself")


def _clear(folder: Path) -> None:
    """Delete everything but the lock, the journal first: what it refers to must outlive it."""
    (folder / JOURNAL).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _LOCK:
            path.unlink()


def _remove(folder: Path, created: list[Path]) -> None:
    with suppress(OSError):  # what cannot be deleted must not hide how the work ended
        _clear(folder)
        (folder / _LOCK).unlink()  # last: by it the folder is known as ours
        folder.rmdir()
    for parent in created:
        with suppress(OSError):  # not empty: it holds the published folder
            parent.rmdir()
