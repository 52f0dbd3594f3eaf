"""Decides whether calibration may compute matrix products in bfloat16, which some CPUs multiply much faster.

Only 16-bit weights use it, and only statistics that choose rows, columns and layers. The original's outputs on the
probes, which verification uses, and all solves stay in float32 and float64.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from curconvert.blocks.stream import Block
from curconvert.checkpoint.dtypes import stored_dtype
from curconvert.checkpoint.types import Checkpoint

_TOLERANCE = 0.02  # relative error of what a block adds to its input; bfloat16 itself rounds to 0.004
_CPUINFO = Path("/proc/cpuinfo")


def multiplies_bfloat16() -> bool:
    """Tell whether this CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX); only known on Linux on x86-64."""
    try:
        found = re.search(r"^flags\s*:(.*)$", _CPUINFO.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return False
    return found is not None and bool({"avx512_bf16", "amx_bf16"} & set(found[1].split()))


def calibration_dtype(checkpoint: Checkpoint, block: Block, hidden: Tensor) -> torch.dtype:
    """Return the dtype for calibration's matrix products, after a test on one batch and block.

    Args:
        checkpoint: The original.
        block: One of its blocks.
        hidden: The block's input, (batch, tokens, hidden_size) float32.

    Returns:
        bfloat16 if the weights have 16 bits, the CPU supports it, and what the block adds to this batch differs by
        less than 2% from float32; otherwise float32.
    """
    if stored_dtype(checkpoint) == "float32" or not (block.on_gpu or multiplies_bfloat16()):
        return torch.float32
    exact = block.forward(hidden) - hidden
    error = block.forward(hidden, dtype=torch.bfloat16) - hidden - exact
    return torch.bfloat16 if bool(error.norm() <= _TOLERANCE * exact.norm()) else torch.float32
