"""Packs quantized integers into bytes and back, and computes the size of a layout."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curconvert.base.counted import counted
from curconvert_runtime.format.quantized import Layout, packings
from curconvert_runtime.format.tensor_file import ITEM_BITS, STORED_DTYPE


def packed_bytes(layout: Layout, shape: tuple[int, int]) -> int:
    """Return the bytes of all stored parts of a matrix (m, n)."""
    return sum(math.prod(size) * ITEM_BITS[kind] // 8 for kind, size in layout.parts(shape).values())


def bits_per_number(layout: Layout) -> float:
    """Return the stored bits per weight, with its share of scale and zero point, without padding."""
    scale = ITEM_BITS[STORED_DTYPE[layout.scale_dtype]]
    return layout.bits + (scale + (0 if layout.symmetric else layout.served)) / layout.block_size


def stored_types(quantization: Mapping[str, Any]) -> str:
    """Return types and block sizes of an artifact's quantized matrices as text; with counts if there are several."""
    stored = packings({"quantization": quantization}).values()
    found = Counter((packing.layout.bits, packing.layout.block_size) for packing in stored)
    several = len(found) > 1
    return " and ".join(
        f"int{bits} in blocks of {size}" + (f" ({counted(count, 'tensor')})" if several else "")
        for (bits, size), count in sorted(found.items())
    )


def plane_mask(layout: Layout, size: int) -> int:
    """Return the bits of a byte that a plane fills, shifted down to the lowest bit of each integer."""
    return int(2**size - 1) * (0x11 if layout.served == 4 else 1)


def pack(values: NDArray[np.uint8], layout: Layout) -> NDArray[np.uint8]:
    """Return the operator's integers as bytes along the last axis; of 4 bits, padded by 0 to an even number."""
    if layout.served == 8:
        return values
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], 1), np.uint8)], axis=-1)
    return np.asarray(values[..., 0::2] | (values[..., 1::2] << 4), dtype=np.uint8)


def unpack(packed: NDArray[Any], layout: Layout, count: int) -> NDArray[np.int16]:
    """Return the first `count` integers that `pack` packed along the last axis."""
    if layout.served == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return packed[..., :count].astype(np.int16)


def split(packed: NDArray[np.uint8], layout: Layout) -> dict[str, NDArray[np.uint8]]:
    """Return the stored planes of packed integers by suffix, each along the last axis.

    The bytes of a block are cut into as many pieces as a plane's bits fit into an integer. Byte i of the plane has the
    bits of byte i of every piece, those of the first piece lowest.
    """
    found = {}
    for suffix, (size, place) in layout.planes.items():
        pieces = np.split((packed >> place) & plane_mask(layout, size), layout.served // size, axis=-1)
        shifted = (piece << (size * number) for number, piece in enumerate(pieces))
        found[suffix] = np.asarray(functools.reduce(np.bitwise_or, shifted), np.uint8)
    return found


def joined(planes: Mapping[str, NDArray[Any]], layout: Layout) -> NDArray[np.uint8]:
    """Return the packed integers of stored planes, as `split` was given them."""
    whole = []
    for suffix, (size, place) in layout.planes.items():
        shifts = range(0, layout.served, size)
        pieces = [((planes[suffix] >> shift) & plane_mask(layout, size)) << place for shift in shifts]
        whole.append(np.concatenate(pieces, axis=-1))
    return np.asarray(functools.reduce(np.bitwise_or, whole), np.uint8)


def dequantize(
    parts: Mapping[str, NDArray[Any]], columns: int, layout: Layout, rows: slice = slice(None)
) -> NDArray[np.float32]:
    """Return rows of the matrix `s·(q − z)` from its stored parts by suffix, (rows, n) float32, rounded once."""
    scales = parts["scales"][rows].astype(np.float32)
    planes = {suffix: parts[suffix][rows] for suffix in layout.planes}
    q = unpack(joined(planes, layout), layout, layout.block_size)
    if layout.symmetric:
        q = q - np.int16(layout.middle)
    else:
        q = q - unpack(parts["zeros"][rows], layout, scales.shape[1])[..., None]
    wide = q.astype(np.float32) * scales[..., None]
    return np.ascontiguousarray(wide.reshape(len(scales), -1)[:, :columns])
