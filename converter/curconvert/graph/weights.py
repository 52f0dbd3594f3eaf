"""Describes a stored matrix in a graph: one initializer, or several for a quantized matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from curconvert_runtime.format.quantized import Layout


@dataclass(frozen=True)
class Packed:
    """The parts of a quantized matrix; `curconvert_runtime.format.quantized` defines them.

    Attributes:
        shape: (m, n) of the matrix.
        layout: Bits, block size and zero points.
        integers: uint8, (m, bytes of a row), for look-ups; otherwise in the shape that the dialect's products take.
        scales: float32, (m, blocks).
        zeros: uint8, (m, bytes of a row); None if the layout is symmetric.
    """

    shape: tuple[int, int]
    layout: Layout
    integers: ir.Value
    scales: ir.Value
    zeros: ir.Value | None

    @property
    def padded(self) -> int:
        """Number of columns, including those that fill the last block."""
        return self.layout.blocks(self.shape[1]) * self.layout.block_size


Weight: TypeAlias = ir.Value | Packed


def width(weight: Weight, axis: int) -> int:
    """Return the length of an axis of a matrix, or of an index vector."""
    return int(weight.shape[axis])
