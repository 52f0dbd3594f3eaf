"""Blocks that are allocated meanwhile ask for huge pages; afterwards the process allocates as others do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from curconvert_runtime import CpuOptions, load
from curconvert_runtime import huge_pages as module

# In a process of its own: what it changes holds for the whole process.
SCRIPT = """
import ctypes, re, sys
from pathlib import Path
from curconvert_runtime.huge_pages import huge_pages

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


@pytest.mark.parametrize(
    ("slow", "filled"),
    [((), 128), ((32, 64), 128), ((32, 33), 34), ((31,), 32), ((0,), 1)],
    ids=["all at hand", "one in 32", "two in 32", "too early", "none at hand"],
)
def test_pages_are_filled_while_they_come_fast(
    slow: tuple[int, ...], filled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that the system has to find is taken; where there are many of them, the rest is left to small pages."""
    clock = 0.0

    def madvise(address: int, length: int, advice: int) -> int:
        nonlocal clock
        assert (length, advice) == (2**21, 23)
        clock += 5e-3 if (address - 2**30) // length in slow else 1e-4
        return 0

    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock))
    assert module._filled(SimpleNamespace(madvise=madvise), 2**30, 2**30 + 128 * 2**21) == 2**30 + filled * 2**21


def test_a_kernel_that_cannot_fill_pages_leaves_them_small() -> None:
    """The call fails before Linux 5.14."""
    assert module._filled(SimpleNamespace(madvise=lambda *_: -1), 2**30, 2**31) == 2**30
