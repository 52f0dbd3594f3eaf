"""Writes files so that they survive a crash. A journal may only refer to files that are on the disk, not in a cache."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FULL = (errno.ENOSPC, errno.EDQUOT)


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
    fresh.write_text(text, encoding="utf-8")
    fsync(fresh)
    fresh.replace(path)
    fsync(path.parent)


def save_array(path: Path, array: NDArray[Any]) -> None:
    """Write a `.npy` file. `np.save` does not report a full disk: its short writes have no error number."""
    array = np.ascontiguousarray(array)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data)


def is_full(error: OSError) -> bool:
    """Tell whether an error means that the disk, or a quota, is used up."""
    return error.errno in _FULL
