"""What this machine and this process can tell: memory in use, and how fast memory is read."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import sys
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

# Far larger than the caches.
_BUFFER_BYTES = 2**29
_PASSES = 3


def peak_memory() -> int | None:
    """Most resident memory of this process so far, in bytes; None where the system is not Linux."""
    return _status("VmHWM")


def resident_memory() -> int | None:
    """Resident memory of this process, in bytes; None where the system is not Linux."""
    return _status("VmRSS")


def release_mapped(paths: Collection[Path]) -> None:
    """Take the pages of mapped files out of this process; one that is read again comes back from the page cache.

    Linux only; elsewhere nothing happens. Nothing may have been written to the mappings.

    Args:
        paths: The files.
    """
    maps = Path("/proc/self/maps")
    names = {str(path.resolve()) for path in paths}
    if sys.platform != "linux" or not maps.exists():
        return
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in maps.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        parts = line.split(maxsplit=5)  # address range, permissions, offset, device, inode, and a name where it has one
        if parts[5:] and parts[5] in names:
            start, end = (int(part, 16) for part in parts[0].split("-"))
            libc.madvise(start, end - start, mmap.MADV_DONTNEED)


def _status(field: str) -> int | None:
    # Not getrusage: its peak begins with that of the process that started this one.
    status = Path("/proc/self/status")
    found = re.search(rf"{field}:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return None if found is None else 1024 * int(found[1])


def available_cpus() -> int:
    """Return how many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class MemoryReader:
    """Reads a large buffer as decoding reads weights: multiplied and added up, once, in order.

    NumPy's product must not start threads of its own (`OPENBLAS_NUM_THREADS=1`): the threads here are meant.

    Args:
        threads: How many read at the same time, each its own part; None for all CPUs of this process.
    """

    def __init__(self, threads: int | None) -> None:
        buffer = np.ones(_BUFFER_BYTES // 4, np.float32)
        self._parts = np.array_split(buffer, threads or available_cpus())
        self._pool = ThreadPoolExecutor(len(self._parts))

    @property
    def buffer_bytes(self) -> int:
        """What a pass reads."""
        return sum(part.nbytes for part in self._parts)

    def bytes_per_second(self) -> float:
        """Return the best rate of a few passes."""
        return max(self._rate() for _ in range(_PASSES))

    def read_once(self) -> None:
        """Read the whole buffer."""
        list(self._pool.map(_read, self._parts))

    def _rate(self) -> float:
        begin = time.perf_counter()
        self.read_once()
        return self.buffer_bytes / (time.perf_counter() - begin)


def _read(part: np.ndarray) -> float:
    half = len(part) // 2
    return float(np.dot(part[:half], part[half : 2 * half]))
