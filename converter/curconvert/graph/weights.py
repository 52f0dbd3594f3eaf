"""A stored matrix as a graph sees it: one initializer, or the parts of a quantized one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from curconvert_runtime.format.quantized import Layout


@dataclass(frozen=True)
class Packed:
    """The initializers of a quantized matrix; `curconvert_runtime.format.quantized` defines them.

    Attributes:
        shape: (m, n) of the matrix.
        layout: How it is packed.
        integers: uint8, (m, bytes of a row), where rows are looked up; otherwise as the dialect's products take them.
        scales: float32, (m, blocks).
        zeros: uint8, (m, bytes of a row); None where the layout is symmetric.
    """

    shape: tuple[int, int]
    layout: Layout
    integers: ir.Value
    scales: ir.Value
    zeros: ir.Value | None

    @property
    def padded(self) -> int:
        """Columns with those that fill the last block up."""
        return self.layout.blocks(self.shape[1]) * self.layout.block_size


Weight: TypeAlias = ir.Value | Packed


def width(weight: Weight, axis: int) -> int:
    """Return the length of an axis of a matrix, or of an index vector."""
    return int(weight.shape[axis])
