"""Packs quantized integers into bytes and back, and computes the size of a layout."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curconvert.base.counted import counted
from curconvert_runtime.format.quantized import Layout, packings


def packed_bytes(layout: Layout, shape: tuple[int, int]) -> int:
    """Return the bytes of all stored parts of a matrix (m, n)."""
    return sum(math.prod(size) * (4 if kind == "F32" else 1) for kind, size in layout.parts(shape).values())


def bits_per_number(layout: Layout) -> float:
    """Return the stored bits per weight, with its share of scale and zero point, without padding."""
    return layout.bits + (32 + (0 if layout.symmetric else layout.bits)) / layout.block_size


def stored_types(quantization: Mapping[str, Any]) -> str:
    """Return types and block sizes of an artifact's quantized matrices as text; with counts if there are several."""
    stored = packings({"quantization": quantization}).values()
    found = Counter((packing.layout.bits, packing.layout.block_size) for packing in stored)
    several = len(found) > 1
    return " and ".join(
        f"int{bits} in blocks of {size}" + (f" ({counted(count, 'tensor')})" if several else "")
        for (bits, size), count in sorted(found.items())
    )


def pack(values: NDArray[np.uint8], layout: Layout) -> NDArray[np.uint8]:
    """Return integers packed into bytes along the last axis; 4-bit integers are padded by 0 to an even number."""
    if layout.bits == 8:
        return values
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], 1), np.uint8)], axis=-1)
    return np.asarray(values[..., 0::2] | (values[..., 1::2] << 4), dtype=np.uint8)


def unpack(packed: NDArray[Any], layout: Layout, count: int) -> NDArray[np.int16]:
    """Return the first `count` integers that are packed along the last axis."""
    if layout.bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return packed[..., :count].astype(np.int16)


def dequantize(
    parts: Mapping[str, NDArray[Any]], columns: int, layout: Layout, rows: slice = slice(None)
) -> NDArray[np.float32]:
    """Return rows of the matrix `s·(q − z)` from its stored parts by suffix, (rows, n) float32, rounded once."""
    scales = parts["scales"][rows]
    q = unpack(parts["q"][rows], layout, layout.block_size)
    if layout.symmetric:
        q = q - np.int16(layout.middle)
    else:
        q = q - unpack(parts["zeros"][rows], layout, scales.shape[1])[..., None]
    wide = q.astype(np.float32) * scales[..., None]
    return np.ascontiguousarray(wide.reshape(len(scales), -1)[:, :columns])
