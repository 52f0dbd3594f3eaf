"""Describes how a quantized matrix is stored: bits, block size, and the dtype and shape of each part.

A row is cut into blocks of columns. Each block has a scale s and a zero point z; a weight is `s·(q − z)`. q and z are
integers of onnxruntime's MatMulNBits, of 4 or 8 bits. Widths between store only the highest bits of q, in planes; the
lowest bits are 0. See docs/artifact.md, "Quantized matrices".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from curconvert_runtime.format.tensor_file import STORED_DTYPE


class Width(NamedTuple):
    """How integers of some bits are stored.

    Attributes:
        planes: Bits of each plane, from the highest bits of an integer down.
        served: Bits of the operator's integers.
    """

    planes: tuple[int, ...]
    served: int


WIDTHS = {
    3: Width((2, 1), 4), 4: Width((4,), 4), 5: Width((4, 1), 8), 6: Width((4, 2), 8), 7: Width((4, 2, 1), 8),
    8: Width((8,), 8),
}  # fmt: skip
BITS = tuple(WIDTHS)
BLOCK_SIZES = (32, 64, 128)
PLANES = ("q", "q1", "q2")
PARTS = (*PLANES, "scales", "zeros")
"""Suffixes of all parts that a quantized tensor can have."""
KEEPS_ACTIVATIONS, ROUNDS_ACTIVATIONS = 1, 4
"""`accuracy_level` of MatMulNBits: 1 keeps activations in float32 (slow), 4 rounds them to 8 bits."""


@dataclass(frozen=True)
class Layout:
    """How the integers of a quantized matrix are stored.

    Attributes:
        bits: Stored bits of one integer, one of `BITS`.
        block_size: Columns that share a scale, one of `BLOCK_SIZES`.
        symmetric: Whether zero points are constant and not stored.
        scale_dtype: `float32` or `float16`.
    """

    bits: int
    block_size: int
    symmetric: bool
    scale_dtype: str = "float32"

    @property
    def served(self) -> int:
        """Bits of the operator's integers, of which `bits` are stored."""
        return WIDTHS[self.bits].served

    @property
    def planes(self) -> dict[str, tuple[int, int]]:
        """Bits of each plane, and the place of its lowest bit in an integer, by suffix."""
        sizes = WIDTHS[self.bits].planes
        ends = itertools.accumulate(sizes)
        return {name: (size, self.served - end) for name, size, end in zip(PLANES, sizes, ends, strict=False)}

    @property
    def middle(self) -> int:
        """Zero point of a symmetric layout, which stores none."""
        return int(2 ** (self.served - 1))

    def blocks(self, columns: int) -> int:
        """Return the number of blocks of a row."""
        return math.ceil(columns / self.block_size)

    def parts(self, shape: tuple[int, int]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return safetensors dtype and shape of each stored part of a matrix (m, n), by suffix."""
        rows, blocks = shape[0], self.blocks(shape[1])
        found: dict[str, tuple[str, tuple[int, ...]]] = {
            name: ("U8", (rows, blocks, self.block_size * size // 8)) for name, (size, _) in self.planes.items()
        }
        found["scales"] = (STORED_DTYPE[self.scale_dtype], (rows, blocks))
        if not self.symmetric:
            found["zeros"] = ("U8", (rows, math.ceil(blocks * self.served / 8)))
        return found


@dataclass(frozen=True)
class Packing:
    """Shape (m, n) and layout of a quantized matrix, without its numbers."""

    shape: tuple[int, int]
    layout: Layout

    @property
    def parts(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Safetensors dtype and shape of each stored part, by suffix."""
        return self.layout.parts(self.shape)

    @property
    def numbers(self) -> int:
        """Number of weights, m·n."""
        return math.prod(self.shape)


def part_name(name: str, suffix: str) -> str:
    """Return the name of a stored part: `….q_proj.weight` and `scales` give `….q_proj.weight.scales`."""
    return f"{name}.{suffix}"


def packings(manifest: Mapping[str, Any]) -> dict[str, Packing]:
    """Return shape and layout of each quantized matrix of an artifact, by the name that it would have unquantized."""
    found = manifest.get("quantization")
    if found is None:
        return {}

    def packing(row: Mapping[str, Any]) -> Packing:
        own = {"scale_dtype": "float32", **found, **row}  # with mixed bits, each row has its own values
        layout = Layout(own["bits"], own["block_size"], own["symmetric"], own["scale_dtype"])
        return Packing((row["shape"][0], row["shape"][1]), layout)

    return {row["name"]: packing(row) for row in found["tensors"]}
