"""Weights in pages of 2 MB: a step of decoding reads all of them, and each page of 4 kB is an address to look up.

onnxruntime has no option for this, and Linux gives such pages to memory that asks for them only. So glibc is told to
take large blocks from its heap, which was made long enough before and asks; that has to happen before the memory is
used. Where the system has huge pages at hand, filling one takes a quarter of the time of 512 small ones; where it must
find them first, above all in a virtual machine whose host takes free memory back, several times as long. So a thread
fills the heap, page by page, ahead of who copies into it: with huge pages for as long as they take no longer than small
ones would, then with small ones, which a copy would else stop at one by one. Of those Linux makes huge pages by and by
while the process lives: 16 MB in 10 seconds, unless khugepaged is set otherwise.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

_PAGE = 2**21
_MADV_HUGEPAGE, _MADV_NOHUGEPAGE, _MADV_POPULATE_WRITE = 14, 15, 23
# Measured here: 0.2 ms for a page at hand, 0.7 ms for the same memory in small pages, 5 ms for one that is not at hand.
_SMALL_SECONDS = 0.7e-3
_MOST_LOST_SECONDS = 5e-3  # by huge pages beside small ones: one that is not at hand
# glibc's malloc.h. A mallopt call ends its own adjustment of the thresholds; these are the largest it would choose.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_NEVER, _MAPPINGS, _LARGEST = -1, 65536, 2**25


@contextmanager
def huge_pages(size: int, *, wait: bool) -> Iterator[None]:
    """Let large blocks that are allocated meanwhile lie in huge pages, where the system can; otherwise change nothing.

    Args:
        size: Bytes that will be allocated, roughly; what is left of them is given back.
        wait: Whether to take huge pages however long the system looks for them; otherwise those that are at hand.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    try:
        start, end = _advised(libc, size)
        most = start + (end - start) * 7 // 8 // _PAGE * _PAGE  # not all of `size` need be allocated
        with nullcontext() if wait else _filling(libc, start, most, end):
            yield
    finally:
        libc.mallopt(_M_MMAP_MAX, _MAPPINGS)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST)
        libc.malloc_trim(0)


def give_back() -> None:
    """Give the heap's free memory back to the system, where that is glibc's."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _advised(libc: Any, size: int) -> tuple[int, int]:
    """Make the heap longer by memory that asks for huge pages; return where it begins and ends."""
    block = libc.malloc(size)
    if not block:
        return 0, 0
    start, end = -(-block // _PAGE) * _PAGE, (block + size) // _PAGE * _PAGE
    if end > start:
        libc.madvise(start, end - start, _MADV_HUGEPAGE)
    libc.free(block)
    return start, max(start, end)


@contextmanager
def _filling(libc: Any, start: int, most: int, end: int) -> Iterator[None]:
    """Fill memory from `start` to `most` meanwhile; with a single core, which both would share, beforehand."""
    done = threading.Event()
    thread = threading.Thread(target=_fill, args=(libc, start, most, end, done.is_set), daemon=True)
    thread.start()
    if len(os.sched_getaffinity(0)) == 1:
        thread.join()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if end > start:
            libc.madvise(start, end - start, _MADV_HUGEPAGE)  # small pages too: khugepaged looks at such memory alone


def _fill(libc: Any, start: int, most: int, end: int, done: Callable[[], bool]) -> None:
    """Fill memory with huge pages while they take no longer than small ones, then with those, as all up to `end` is."""
    left, huge = _MOST_LOST_SECONDS, True
    for page in range(start, most, _PAGE):
        if done():
            return
        begin = time.perf_counter()
        if libc.madvise(page, _PAGE, _MADV_POPULATE_WRITE):  # Linux before 5.14 does not know it
            libc.madvise(page, end - page, _MADV_NOHUGEPAGE)
            return
        left += _SMALL_SECONDS - (time.perf_counter() - begin)
        if huge and left < 0:
            huge = False
            libc.madvise(page + _PAGE, end - page - _PAGE, _MADV_NOHUGEPAGE)


def _glibc() -> Any:
    """Return the C library; None where it is another one."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return None
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.malloc_trim.argtypes = [ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc
