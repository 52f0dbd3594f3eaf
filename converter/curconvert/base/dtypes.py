"""Converts between torch dtypes and their names."""

from __future__ import annotations

import torch


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name as config.json and the manifest spell it: `float32`, `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def torch_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of a name such as `bfloat16`."""
    found: torch.dtype = getattr(torch, name)
    return found
