"""Computes logits by an lm_head in blocks of vocabulary rows, to save memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from curconvert.blocks.quantized import Quantized

_HEAD_CHUNK = 8192  # vocabulary rows per product, which limits the float32 copy of a half-precision lm_head


class ChunkedHead(nn.Module):
    """An lm_head over a memory-mapped weight of any float dtype, multiplied in float32 by blocks of vocabulary rows."""

    def __init__(
        self, weight: Tensor | Quantized, bias: Tensor | None = None, deployed: torch.dtype | None = None
    ) -> None:
        super().__init__()
        # Plain attributes, because calls on the whole module must not move or cast the memory-mapped file.
        self._weight, self._bias, self._deployed = weight, bias, deployed

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (…, hidden_size) to (…, vocab_size) logits."""
        chunks = [hidden @ rows.to(hidden.dtype).T for rows in self._rows()]
        logits = torch.cat(chunks, dim=-1)
        return logits if self._bias is None else logits + self._rounded(self._bias, hidden.dtype)

    def _rows(self) -> Iterator[Tensor]:
        if isinstance(self._weight, Tensor):
            for rows in torch.split(self._weight, _HEAD_CHUNK):
                yield rows.to(self._deployed or rows.dtype)
        else:
            for start in range(0, self._weight.shape[0], _HEAD_CHUNK):
                yield self._weight.rows(slice(start, start + _HEAD_CHUNK))

    def _rounded(self, part: Tensor, dtype: torch.dtype) -> Tensor:
        return part.to(self._deployed or part.dtype).to(dtype)
