"""The spelling of dtypes."""

from __future__ import annotations

import torch


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's dtype of this name."""
    found: torch.dtype = getattr(torch, name)
    return found
