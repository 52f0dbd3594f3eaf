"""Splits a fused projection into its parts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class SplitLinear(nn.Module):
    """Replaces a fused projection (Phi-3's `qkv_proj`) by its named parts, so that each is compressed separately."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.names = tuple(parts)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the parts' outputs, in the order in which the fused weight stores its rows."""
        return torch.cat([self.get_submodule(name)(x) for name in self.names], dim=-1)
