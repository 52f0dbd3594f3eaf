"""The linear of `dense` and of the modular forms: torch's own, of the size of its weight."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def plain_linear(tensors: Mapping[str, Tensor], bias: Tensor | None = None) -> nn.Linear:
    """Return a linear of the stored `weight`, (out_features, in_features), frozen."""
    weight = tensors["weight"]
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear
