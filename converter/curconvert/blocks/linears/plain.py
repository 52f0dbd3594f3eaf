"""Builds torch's own linear for form `dense` and the modular forms."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def plain_linear(tensors: Mapping[str, Tensor], bias: Tensor | None = None) -> nn.Linear:
    """Return a frozen linear with the stored `weight`, (out_features, in_features)."""
    weight = tensors["weight"]
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear
