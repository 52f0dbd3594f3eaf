"""Blocks that are allocated meanwhile ask for huge pages; afterwards the process allocates as others do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from curconvert_runtime import CpuOptions, load

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
with huge_pages(2 * size):
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


def test_a_session_answers_the_same(sealed: Path) -> None:
    """Only where the weights lie is another thing."""
    expected, found = (load(sealed, options=CpuOptions(huge_pages=huge)).logits([5, 9, 7]) for huge in (False, True))
    np.testing.assert_array_equal(expected, found)
