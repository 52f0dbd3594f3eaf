"""Makes the page cache look as if another process had written a file."""

from __future__ import annotations

import os
from pathlib import Path


def read_from_disk(path: Path) -> None:
    """Put a file out of the cache and read it again: the system then caches it in larger pieces than when written."""
    with path.open("rb", buffering=0) as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while file.read(2**24):
            pass
