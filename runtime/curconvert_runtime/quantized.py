"""How a quantised matrix is stored, and what it stands for.

A matrix W, (m, n), is cut into blocks of `block_size` columns of one row, the last one padded. In each block
`W ≈ s·(q − z)`: a float32 scale s, a zero point z and integers q. Integers are stored as hexadecimal digits, two to a
byte, the low four bits first: one digit with 4 bits, two digits (planes) with 8, `q = 16·q₁ + q₀`.

| part of `T` | shape | type | |
|---|---|---|---|
| `T.q` | (m, blocks, block_size / 2) | uint8 | q, with 8 bits its high digits |
| `T.q_low` | the same | uint8 | its low digits; 8 bits only |
| `T.scales` | (m, blocks) | float32 | s; may be negative |
| `T.zeros` | (m, ⌈blocks / 2⌉) | uint8 | z, packed like q; without it every digit of z is 8 |
| `T.zeros_low` | the same | uint8 | 8 bits only |

Each plane has the layout of onnxruntime's MatMulNBits with 4 bits, so 8 bits are two such products. Its own kernel for
8 bits either rounds activations to 8 bits or, computing in float32, unpacks the weight in every call.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BITS = (4, 8)
BLOCK_SIZES = (32, 64, 128)
PARTS = ("q", "q_low", "scales", "zeros", "zeros_low")
"""Suffixes of all parts that a quantised tensor can have."""
MIDDLE = 8
"""Every digit of a zero point that is not stored."""
_PLANES = {4: ("",), 8: ("", "_low")}


@dataclass(frozen=True)
class Layout:
    """How integers of a quantised matrix are stored.

    Attributes:
        bits: Of an integer, one of `BITS`.
        block_size: Columns that share a scale, one of `BLOCK_SIZES`.
        symmetric: Whether zero points are constant and not stored.
    """

    bits: int
    block_size: int
    symmetric: bool

    @property
    def planes(self) -> tuple[str, ...]:
        """Endings of the digits' names, the highest digit first."""
        return _PLANES[self.bits]

    @property
    def middle(self) -> int:
        """The zero point where none is stored."""
        return MIDDLE if self.bits == 4 else 17 * MIDDLE

    @property
    def largest(self) -> int:
        """The largest integer."""
        return int(2**self.bits - 1)

    def blocks(self, columns: int) -> int:
        """Return the number of blocks of a row."""
        return math.ceil(columns / self.block_size)

    def parts(self, shape: tuple[int, int]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return safetensors dtype and shape of each stored part, by suffix.

        Args:
            shape: (m, n).
        """
        rows, blocks = shape[0], self.blocks(shape[1])
        found: dict[str, tuple[str, tuple[int, ...]]] = {
            f"q{plane}": ("U8", (rows, blocks, self.block_size // 2)) for plane in self.planes
        }
        found["scales"] = ("F32", (rows, blocks))
        if not self.symmetric:
            found |= {f"zeros{plane}": ("U8", (rows, (blocks + 1) // 2)) for plane in self.planes}
        return found

    def nbytes(self, shape: tuple[int, int]) -> int:
        """Return the bytes of all parts."""
        return sum(math.prod(size) * (4 if kind == "F32" else 1) for kind, size in self.parts(shape).values())

    @property
    def bits_per_number(self) -> float:
        """Bits of a number with its share of scale and zero point, padding left out."""
        return self.bits + (32 + (0 if self.symmetric else self.bits)) / self.block_size


@dataclass(frozen=True)
class Packing:
    """A quantised matrix without its numbers.

    Attributes:
        shape: (m, n).
        layout: How it is stored.
    """

    shape: tuple[int, int]
    layout: Layout

    @property
    def parts(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Safetensors dtype and shape of each stored part, by suffix."""
        return self.layout.parts(self.shape)

    @property
    def numbers(self) -> int:
        """m·n."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return self.layout.nbytes(self.shape)


def part_name(name: str, suffix: str) -> str:
    """Name of a stored part: `….q_proj.weight` and `scales` give `….q_proj.weight.scales`."""
    return f"{name}.{suffix}"


def packings(manifest: Mapping[str, Any]) -> dict[str, Packing]:
    """Return shape and layout of each quantised matrix of an artifact, by the name that it would have unquantised."""
    found = manifest.get("quantization")
    if found is None:
        return {}

    def packing(row: Mapping[str, Any]) -> Packing:
        own = {**found, **row}  # where widths are mixed, each row has its own
        return Packing((row["shape"][0], row["shape"][1]), Layout(own["bits"], own["block_size"], own["symmetric"]))

    return {row["name"]: packing(row) for row in found["tensors"]}


def stored_types(quantization: Mapping[str, Any]) -> str:
    """Return types and block sizes of an artifact's quantised matrices, with how many have each where there are two."""
    stored = packings({"quantization": quantization}).values()
    found = Counter((packing.layout.bits, packing.layout.block_size) for packing in stored)
    several = len(found) > 1
    return " and ".join(
        f"int{bits} in blocks of {size}" + (f" ({count} tensors)" if several else "")
        for (bits, size), count in sorted(found.items())
    )


def pack(digits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Put two digits into a byte, along the last axis, the first one low; an odd one out is followed by 0."""
    if digits.shape[-1] % 2:
        digits = np.concatenate([digits, np.zeros((*digits.shape[:-1], 1), np.uint8)], axis=-1)
    return np.asarray(digits[..., 0::2] | (digits[..., 1::2] << 4), dtype=np.uint8)


def unpack(packed: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Take digits out of bytes again, along the last axis, the first `count` of them."""
    pairs = np.stack([packed & 15, packed >> 4], axis=-1)
    return np.asarray(pairs.reshape(*packed.shape[:-1], -1)[..., :count], dtype=np.uint8)


def pack_integers(values: NDArray[np.uint8], layout: Layout) -> list[NDArray[np.uint8]]:
    """Return the planes of some integers, packed along the last axis, the highest digits first."""
    if layout.bits == 4:
        return [pack(values)]
    return [pack((values >> 4).astype(np.uint8)), pack((values & 15).astype(np.uint8))]


def _integers(planes: Iterable[NDArray[Any]], count: int) -> NDArray[np.int16]:
    total: NDArray[np.int16] = np.zeros((), np.int16)
    for plane in planes:
        total = 16 * total + unpack(plane, count)
    return total


def dequantise(
    parts: Mapping[str, NDArray[Any]], columns: int, layout: Layout, rows: slice = slice(None)
) -> NDArray[np.float32]:
    """Return what the stored parts stand for, (m, n) float32: `s·(q − z)`, rounded once.

    Args:
        parts: By suffix.
        columns: n.
        layout: How they are packed.
        rows: Which rows.
    """
    scales = parts["scales"][rows]
    q = _integers((parts[f"q{plane}"][rows] for plane in layout.planes), layout.block_size)
    if layout.symmetric:
        q = q - np.int16(layout.middle)
    else:
        zeros = _integers((parts[f"zeros{plane}"][rows] for plane in layout.planes), scales.shape[1])
        q = q - zeros[..., None]
    wide = q.astype(np.float32) * scales[..., None]
    return np.ascontiguousarray(wide.reshape(len(scales), -1)[:, :columns])
