"""bfloat16 products for calibration, where weights have 16 bits anyway and the CPU multiplies them much faster.

Only what chooses rows, columns and layers is computed so. The original's answers on the probes, what the artifact is
verified against, and every solve keep float32 and float64.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from curconvert.blocks.stream import Block
from curconvert.checkpoint.types import Checkpoint
from curconvert.families.skeleton import EMBEDDING

_TOLERANCE = 0.02  # of what a block adds to its input; bfloat16 rounds to 0.004
_CPUINFO = Path("/proc/cpuinfo")


def multiplies_bfloat16() -> bool:
    """Tell whether this CPU has products of bfloat16 in hardware (AVX512-BF16 or AMX); Linux on x86-64 tells."""
    try:
        found = re.search(r"^flags\s*:(.*)$", _CPUINFO.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return False
    return found is not None and bool({"avx512_bf16", "amx_bf16"} & set(found[1].split()))


def calibration_dtype(checkpoint: Checkpoint, block: Block, hidden: Tensor) -> torch.dtype:
    """Choose the dtype of calibration's products, and check it on one batch and block.

    Args:
        checkpoint: The original.
        block: One of its blocks.
        hidden: What enters it, (batch, tokens, hidden_size) float32.

    Returns:
        bfloat16 where the weights have 16 bits, the CPU multiplies them, and what the block adds to this batch is
        within 2 % of what it adds in float32; otherwise float32.
    """
    if checkpoint.tensors[EMBEDDING].dtype == "F32" or not (block.on_gpu or multiplies_bfloat16()):
        return torch.float32
    exact = block.forward(hidden) - hidden
    error = block.forward(hidden, dtype=torch.bfloat16) - hidden - exact
    return torch.bfloat16 if bool(error.norm() <= _TOLERANCE * exact.norm()) else torch.float32
