"""Writes files so that they survive a crash. A journal may only refer to files that are on the disk, not in a cache."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curconvert.base.errors import BackendError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(BackendError):
    """The disk, a quota or the limit on the size of files is used up."""


def fsync(path: Path) -> None:
    """Flush a file, or a folder's list of entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_text(path: Path, text: str) -> None:
    """Replace a file's content: after a crash it holds the old text or the new one."""
    fresh = path.with_name(f"{path.name}.new")
    try:
        fresh.write_text(text, encoding="utf-8")
        fsync(fresh)
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write a `.npy` file. `np.save` does not report a full disk: its short writes have no error number."""
    array = np.ascontiguousarray(array)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)


def is_full(error: OSError) -> bool:
    """Tell whether an error means that the disk, a quota or the limit on the size of files is used up."""
    return error.errno in _FULL


def used_bytes(folder: Path) -> int:
    """Return the disk space that the files in a folder take; 0 if it does not exist."""
    if not folder.is_dir():
        return 0
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def disk_full(place: Path, missing: int) -> DiskFullError:
    """Return the error for a full disk.

    Args:
        place: A file or folder on the disk, which need not exist.
        missing: About how many bytes are not written yet; 0 is unknown.
    """
    place = next(parent for parent in (place, *place.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(place).free
    found = f"{room(free)} free"
    if missing > free:
        found += f", about {room(missing - free)} more needed"
    elif missing:
        found += f", about {room(missing)} to write; a quota or a limit on the size of files may apply"
    return DiskFullError(f"{place}: no space left on the disk ({found}); free some and run the same command again")


@contextmanager
def full_disk_named(folder: Path, needed: int) -> Iterator[None]:
    """Turn the system's error for a full disk into a `DiskFullError` that says how much room is missing.

    Args:
        folder: Where the work writes; what is in it counts as written.
        needed: About how many bytes the work has on disk at once; 0 leaves the error as it is.
    """
    try:
        yield
    except (OSError, DiskFullError) as error:
        if needed and (isinstance(error, DiskFullError) or is_full(error)):  # of jobs in jobs, the outer one is named
            # An estimate that is used up was too low; graphs and reports still need a part of it.
            raise disk_full(folder.parent, max(needed // 10, needed - used_bytes(folder), 1)) from error
        raise


def room(count: int) -> str:
    """Return a number of bytes with a unit."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} bytes"
