"""Blocks that are allocated meanwhile ask for huge pages; afterwards the process allocates as others do."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from curconvert_runtime import CpuOptions, load
from curconvert_runtime.serve import huge_pages as module

START, END = 2**30, 2**30 + 144 * 2**21
# In a process of its own: what it changes holds for the whole process.
SCRIPT = """
import ctypes, re, sys
from pathlib import Path
from curconvert_runtime.serve.huge_pages import huge_pages

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def flags(address):
    for entry in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        if entry:
            start, end = (int(part, 16) for part in entry.split()[0].split("-"))
            if start <= address < end:
                return entry.split("VmFlags:")[1].split()

size = 48 * 2**20
with huge_pages(2 * size, wait=True):
    inside = libc.malloc(size)
    libc.memset(inside, 1, size)
after = libc.malloc(2 * size)  # more than is left
print("hg" in flags(inside + size // 2), "hg" in flags(after + size // 2))
"""


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without huge pages")
def test_large_blocks_ask_for_huge_pages_inside_and_not_afterwards() -> None:
    """The kernel's own record of the memory says so."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["True", "False"], done.stderr


@pytest.mark.parametrize("huge", [True, None])
def test_a_session_answers_the_same(sealed: Path, huge: bool | None) -> None:
    """Only where the weights lie is another thing."""
    expected, found = (load(sealed, options=CpuOptions(huge_pages=pages)).logits([5, 9, 7]) for pages in (False, huge))
    np.testing.assert_array_equal(expected, found)


class Memory:
    """Records what is advised, in pages from the start, and lets a filled page take its time."""

    def __init__(self, slow: tuple[int, ...] = (), last: int | None = None) -> None:
        self.seconds, self.filled, self.small_from = 0.0, 0, None
        self._slow, self._last = slow, last

    def madvise(self, address: int, length: int, advice: int) -> int:
        page = (address - START) // 2**21
        if advice == 15:
            assert address + length == END
            assert self.small_from is None
            self.small_from = page
            return 0
        assert (page, length, advice) == (self.filled, 2**21, 23)
        if page == self._last:
            return -1
        self.filled += 1
        self.seconds += 5e-3 if page in self._slow else 1e-4
        return 0

    def fill(self, monkeypatch: pytest.MonkeyPatch, done: Callable[[], bool] = lambda: False) -> tuple[int, int | None]:
        """Return how many pages were filled, and from which on they were to be small."""
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.seconds))
        module._fill(self, START, START + 128 * 2**21, END, done)
        return self.filled, self.small_from


@pytest.mark.parametrize(
    ("slow", "small_from"),
    # A page at hand saves 0.6 ms, one that is not costs 4.3 ms, and 5 ms may be lost.
    [
        ((), None),
        ((0,), None),
        ((0, 1), 2),
        (tuple(range(128)), 2),
        (tuple(range(0, 128, 6)), 7),
        (tuple(range(0, 128, 9)), None),
        (tuple(range(100, 128)), 116),
    ],
    ids=["all at hand", "one not", "two not", "none at hand", "one in 6 not", "one in 9 not", "the last ones not"],
)
def test_pages_are_huge_while_they_take_no_longer_than_small_ones(
    slow: tuple[int, ...], small_from: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that the system has to find is taken; where there are too many of them, small ones fill the rest."""
    assert Memory(slow).fill(monkeypatch) == (128, small_from)


def test_a_kernel_that_cannot_fill_pages_leaves_them_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call fails before Linux 5.14."""
    assert Memory(last=0).fill(monkeypatch) == (0, 0)


def test_nothing_is_filled_any_more_once_all_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would only be given back."""
    memory = Memory()
    assert memory.fill(monkeypatch, lambda: memory.filled == 5) == (5, None)


def test_small_pages_may_become_huge_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux's own thread puts pages together where memory asks for it, and the small ones had been told not to ask."""
    advised: list[tuple[int, int, int]] = []
    libc = SimpleNamespace(madvise=lambda *arguments: advised.append(arguments))
    monkeypatch.setattr(module, "_fill", lambda *_: libc.madvise(START, END - START, 15))
    with module._filling(libc, START, END, END):
        pass
    assert advised == [(START, END - START, 15), (START, END - START, 14)]


@pytest.mark.parametrize("cores", [1, 2])
def test_a_thread_fills_ahead_of_the_copies(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a single core, which it would take from them, before them; it has ended afterwards in any case."""
    begun, told = threading.Event(), threading.Event()

    def fill(*arguments: Any) -> None:
        begun.set()
        assert cores == 1 or told.wait(10)

    monkeypatch.setattr(module, "_fill", fill)
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: set(range(cores)))
    before = threading.active_count()
    with module._filling(None, 0, 0, 0):
        assert begun.wait(10)
        assert threading.active_count() == before + cores - 1
        told.set()
    assert threading.active_count() == before
