"""Weights in pages of 2 MB: a step of decoding reads all of them, and each page of 4 kB is an address to look up.

onnxruntime has no option for this, and Linux gives such pages to memory that asks for them only. So glibc is told to
take large blocks from its heap, which was made long enough before and asks; that has to happen before the memory is
used. It changes how the whole process allocates, so it is for processes that do little else than serve.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_PAGE = 2**21
_MADV_HUGEPAGE = 14
# glibc's malloc.h. A mallopt call ends its own adjustment of the thresholds; these are the largest it would choose.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_NEVER, _MAPPINGS, _LARGEST = -1, 65536, 2**25


@contextmanager
def huge_pages(size: int) -> Iterator[None]:
    """Let large blocks that are allocated meanwhile lie in huge pages, where the system can; otherwise change nothing.

    Args:
        size: Bytes that will be allocated, roughly.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    try:
        if block := libc.malloc(size):
            start, end = -(-block // _PAGE) * _PAGE, (block + size) // _PAGE * _PAGE
            if end > start:
                libc.madvise(start, end - start, _MADV_HUGEPAGE)
            libc.free(block)
        yield
    finally:
        libc.mallopt(_M_MMAP_MAX, _MAPPINGS)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST)


def _glibc() -> Any:
    """Return the C library; None where it is another one."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return None
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc
