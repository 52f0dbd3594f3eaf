"""Chooses the dtype of an artifact's weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import torch

from curconvert.base.dtypes import dtype_name
from curconvert.checkpoint.safetensors_file import DTYPES
from curconvert.checkpoint.types import Checkpoint, TensorInfo


def deployed_dtype(checkpoint: Checkpoint, dtype: str | None, arithmetic: str) -> str:
    """Return the dtype of the artifact's weights: the requested one, float16 for float16 graphs, or the original's."""
    return dtype or ("float16" if arithmetic == "float16" else stored_dtype(checkpoint))


def stored_dtype(checkpoint: Checkpoint) -> str:
    """Return the dtype that holds every weight of the checkpoint."""
    return str(checkpoint.config["dtype"])


def common_dtype(tensors: Mapping[str, TensorInfo], read: Callable[[str], torch.Tensor]) -> tuple[str, tuple[str, ...]]:
    """Return the narrowest dtype that holds every stored weight, and a notice if it is wider than some of them.

    GGUF files with 16-bit matrices hold their norms and biases in float32, although these were 16-bit numbers before.
    Therefore the values of vectors decide, not their stored dtype. If dtypes differ, the vectors are read.

    Args:
        tensors: The stored tensors.
        read: Reads one of them.
    """
    matrices = {DTYPES[info.dtype] for info in tensors.values() if len(info.shape) > 1}
    if len(matrices) == 1:
        (narrow,) = matrices
        others = [name for name, info in tensors.items() if DTYPES[info.dtype] != narrow]
        if all(torch.equal(_rounded(read(name), narrow), read(name).float()) for name in others):
            return dtype_name(narrow), ()
    counts = Counter(dtype_name(DTYPES[info.dtype]) for info in tensors.values())
    listed = ", ".join(f"{count} tensors in {name}" for name, count in sorted(counts.items()))
    return "float32", (f"the dtypes of weights differ: {listed}; float32 holds all of them, unless --dtype asks less",)


def _rounded(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype).float()
