"""Publishes an output folder so that it is either complete or absent."""

from __future__ import annotations

import logging
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from curconvert.artifact.lock import PARTIAL, locked, remove, replace_output, resumable, tidy
from curconvert.base.durable import fsync
from curconvert.base.errors import InputError
from curconvert_runtime.format.files import MANIFEST

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """How to recognize a kind of output folder. A folder is only replaced by one of the same kind.

    Attributes:
        noun: Name of the kind in messages.
        marker: A file that every folder of this kind holds.
        signature: Bytes in the marker, for a file name that other programs may use.
    """

    noun: str
    marker: str
    signature: bytes = b""

    def holds(self, folder: Path) -> bool:
        """Tell whether a folder is of this kind."""
        marker = folder / self.marker
        return marker.is_file() and self.signature in marker.read_bytes()


ARTIFACT = Kind("artifact", MANIFEST)
SWEEP = Kind("sweep", "sweep.json", b'"schema": "sweep-1.')


def check_output(out: Path, overwrite: bool, sources: tuple[Path, ...] = (), kind: Kind = ARTIFACT) -> None:
    """Check, before any work is done, that an output can be written and overwrites nothing of value.

    What dead runs left beside the output is deleted.

    Args:
        out: The folder to make.
        overwrite: Whether an existing folder of this kind may be replaced.
        sources: The input's files and folder. The output must not be one of them, in them or around them.
        kind: Kind of folder to publish.

    Raises:
        InputError: The output cannot be written or must not be overwritten.
    """
    if out.is_symlink():
        raise InputError(f"{out}: is a symbolic link; name the folder itself")
    tidy(out)
    resolved = out.resolve()
    for source in sources:
        place = source.resolve()
        if resolved == place or (place.is_dir() and resolved.is_relative_to(place)) or place.is_relative_to(resolved):
            raise InputError(f"{out}: output and input overlap ({source}); choose another output folder")
    _check(out, overwrite, kind)


def _check(out: Path, overwrite: bool, kind: Kind) -> None:
    if out.exists():
        if not out.is_dir():
            raise InputError(f"{out}: exists and is not a folder; choose another output")
        if any(out.iterdir()):
            if not overwrite:
                raise InputError(f"{out}: exists and is not empty; choose another output, or pass --overwrite")
            if not kind.holds(out):
                raise InputError(
                    f"{out}: holds no {kind.marker} that curconvert wrote, so it is no {kind.noun} and is not "
                    "overwritten; remove it yourself"
                )
    parent = out.resolve().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"{out}: {parent} is a file, not a folder; choose another output")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{parent}: no permission to create {out.name} here")


@contextmanager
def atomic_folder(out: Path, overwrite: bool = False, kind: Kind = ARTIFACT, needed: int = 0) -> Iterator[Path]:
    """Yield a temporary folder beside `out`. It becomes `out` by one rename if the context ends without an error.

    An old folder is moved aside first, put back after an error, and removed last. What a killed run leaves behind is
    deleted by the next run with the same output.

    Args:
        out: The folder to publish.
        overwrite: Whether an existing folder of this kind may be replaced.
        kind: Kind of folder to publish.
        needed: About how many bytes the folder will have, for the message if the disk is full.

    Raises:
        InputError: A folder or file that must not be replaced appeared at `out` meanwhile, or another run writes it.
        DiskFullError: The disk is full.
    """
    created = missing_parents(out)
    with locked(out, needed) as folder:
        work = folder / PARTIAL
        work.mkdir(0o700)
        try:
            yield work
            publish(work, out, overwrite, kind)
        finally:
            shutil.rmtree(work, ignore_errors=True)
            if not resumable(folder):
                remove(folder, created)


def missing_parents(out: Path) -> list[Path]:
    """Return the parent folders of an output that do not exist yet, the innermost first."""
    return [folder for folder in out.resolve().parents if not folder.exists()]


def publish(work: Path, out: Path, overwrite: bool = False, kind: Kind = ARTIFACT) -> None:
    """Flush a finished folder to the disk, then rename it to the output.

    Args:
        work: The finished folder, in the locked working folder of the output.
        out: The output. An old folder there is put back after an error.
        overwrite: Whether an existing folder of this kind may be replaced.
        kind: Kind of folder to publish.

    Raises:
        InputError: A folder or file that must not be replaced is at `out`.
    """
    out = out.resolve()
    work.chmod(_usual_mode(work))
    for path in work.iterdir():
        fsync(path)
    fsync(work)
    _check(out, overwrite, kind)
    replace_output(work, out)
    fsync(out.parent)


def _usual_mode(folder: Path) -> int:
    """Return the mode that new folders get here. Asking for the umask would change it for other threads."""
    probe = folder / ".mode"
    probe.mkdir()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.rmdir()
    return mode
