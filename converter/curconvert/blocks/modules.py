"""The modules that stand in for transformers' own: factored linears, split fused projections, a chunked head."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_HEAD_CHUNK = 8192  # vocabulary rows per product: bounds the float32 copy of a half-precision lm_head


class CURLinear(nn.Module):
    """`y = C (U (R x)) + b`, the product of three stored factors.

    Attributes:
        C: (out_features, rank) columns of the original weight.
        U: (rank, rank) linking matrix.
        R: (rank, in_features) rows of the original weight.
        bias: (out_features,) or None.
    """

    bias: Tensor | None

    def __init__(self, C: Tensor, U: Tensor, R: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.C = nn.Parameter(C, requires_grad=False)
        self.U = nn.Parameter(U, requires_grad=False)
        self.R = nn.Parameter(R, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in_features) to (…, out_features)."""
        x = nn.functional.linear(nn.functional.linear(x, self.R), self.U)
        return nn.functional.linear(x, self.C, self.bias)


class SplitLinear(nn.Module):
    """A fused projection (Phi-3's `qkv_proj`) as its named parts, so that each can be compressed by itself."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.names = tuple(parts)
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the parts' outputs, in the order in which the fused weight stores its rows."""
        return torch.cat([self.get_submodule(name)(x) for name in self.names], dim=-1)


class ChunkedHead(nn.Module):
    """An lm_head over a memory-mapped weight of any float dtype, multiplied in float32 by blocks of vocabulary rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, deployed: torch.dtype | None = None) -> None:
        super().__init__()
        # Plain attributes: the mapped file must not be moved or cast by module-wide calls.
        self._weight, self._bias = weight, bias
        self._deployed = deployed or weight.dtype

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (…, hidden_size) to (…, vocab_size) logits."""
        chunks = [hidden @ self._rounded(rows, hidden.dtype).T for rows in torch.split(self._weight, _HEAD_CHUNK)]
        logits = torch.cat(chunks, dim=-1)
        return logits if self._bias is None else logits + self._rounded(self._bias, hidden.dtype)

    def _rounded(self, part: Tensor, dtype: torch.dtype) -> Tensor:
        return part.to(self._deployed).to(dtype)
