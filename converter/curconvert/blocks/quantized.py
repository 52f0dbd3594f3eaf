"""Holds a quantized matrix in memory and dequantizes rows of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curconvert.base.packing import dequantize
from curconvert_runtime.format.quantized import Layout


@dataclass(frozen=True)
class Quantized:
    """A quantized matrix.

    Attributes:
        shape: (m, n).
        layout: Bits, block size and zero points.
        parts: The stored tensors by suffix, see `curconvert_runtime.format.quantized`.
    """

    shape: tuple[int, int]
    layout: Layout
    parts: dict[str, Tensor]

    def rows(self, which: slice = slice(None)) -> Tensor:
        """Return a slice of rows, dequantized, (rows, n) float32."""
        arrays = {suffix: part.numpy() for suffix, part in self.parts.items()}
        return torch.from_numpy(dequantize(arrays, self.shape[1], self.layout, which))

    def __getitem__(self, ids: Tensor) -> Tensor:
        """Return the rows with these indices, dequantized, (count, n) float32."""
        chosen = {suffix: part[ids] for suffix, part in self.parts.items()}
        return Quantized((len(ids), self.shape[1]), self.layout, chosen).rows()
