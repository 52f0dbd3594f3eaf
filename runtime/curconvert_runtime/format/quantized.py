"""Describes how a quantized matrix is stored: bits, block size, and the dtype and shape of each part.

A row is cut into blocks of columns. Each block has a scale s and a zero point z; a weight is `s·(q − z)`. This is the
layout of onnxruntime's MatMulNBits, see docs/artifact.md, "Quantized matrices".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BITS = (4, 8)
BLOCK_SIZES = (32, 64, 128)
PARTS = ("q", "scales", "zeros")
"""Suffixes of all parts that a quantized tensor can have."""
KEEPS_ACTIVATIONS, ROUNDS_ACTIVATIONS = 1, 4
"""`accuracy_level` of MatMulNBits: 1 keeps activations in float32 (slow), 4 rounds them to 8 bits."""


@dataclass(frozen=True)
class Layout:
    """How the integers of a quantized matrix are stored.

    Attributes:
        bits: Bits of one integer, one of `BITS`.
        block_size: Columns that share a scale, one of `BLOCK_SIZES`.
        symmetric: Whether zero points are constant and not stored.
    """

    bits: int
    block_size: int
    symmetric: bool

    @property
    def middle(self) -> int:
        """Zero point of a symmetric layout, which stores none."""
        return int(2 ** (self.bits - 1))

    def blocks(self, columns: int) -> int:
        """Return the number of blocks of a row."""
        return math.ceil(columns / self.block_size)

    def parts(self, shape: tuple[int, int]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return safetensors dtype and shape of each stored part of a matrix (m, n), by suffix."""
        rows, blocks = shape[0], self.blocks(shape[1])
        found: dict[str, tuple[str, tuple[int, ...]]] = {
            "q": ("U8", (rows, blocks, self.block_size * self.bits // 8)),
            "scales": ("F32", (rows, blocks)),
        }
        if not self.symmetric:
            found["zeros"] = ("U8", (rows, math.ceil(blocks * self.bits / 8)))
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
        own = {**found, **row}  # with mixed bits, each row has its own values
        return Packing((row["shape"][0], row["shape"][1]), Layout(own["bits"], own["block_size"], own["symmetric"]))

    return {row["name"]: packing(row) for row in found["tensors"]}
