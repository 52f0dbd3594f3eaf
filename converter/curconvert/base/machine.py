"""Measures this machine and process: memory in use, available CPUs, and how fast memory is read."""

from __future__ import annotations

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

# Far larger than the caches.
_BUFFER_BYTES = 2**29
_PASSES = 3


def peak_memory() -> int | None:
    """Return the peak resident memory of this process, in bytes; None on systems other than Linux."""
    return _status("VmHWM")


def resident_memory() -> int | None:
    """Return the resident memory of this process, in bytes; None on systems other than Linux."""
    return _status("VmRSS")


def _status(field: str) -> int | None:
    # getrusage is no use here: its peak starts with the peak of the parent process.
    status = Path("/proc/self/status")
    found = re.search(rf"{field}:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return None if found is None else 1024 * int(found[1])


def available_cpus() -> int:
    """Return how many CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class MemoryReader:
    """Measures the read bandwidth of the memory, by products over a large buffer, as decoding reads weights.

    Set `OPENBLAS_NUM_THREADS=1`, so that NumPy's product starts no threads of its own.

    Args:
        threads: Number of threads, each reading its own part of the buffer; None for all CPUs of this process.
    """

    def __init__(self, threads: int | None) -> None:
        buffer = np.ones(_BUFFER_BYTES // 4, np.float32)
        self._parts = np.array_split(buffer, threads or available_cpus())
        self._pool = ThreadPoolExecutor(len(self._parts))

    @property
    def buffer_bytes(self) -> int:
        """Bytes that one pass reads."""
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
