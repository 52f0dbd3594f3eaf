"""Integers into bytes, and what a layout costs and is called."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curconvert_runtime.format.quantized import Layout, packings


def packed_bytes(layout: Layout, shape: tuple[int, int]) -> int:
    """Return the bytes of all stored parts of a matrix (m, n)."""
    return sum(math.prod(size) * (4 if kind == "F32" else 1) for kind, size in layout.parts(shape).values())


def bits_per_number(layout: Layout) -> float:
    """Return the bits of a number with its share of scale and zero point, padding left out."""
    return layout.bits + (32 + (0 if layout.symmetric else layout.bits)) / layout.block_size


def stored_types(quantization: Mapping[str, Any]) -> str:
    """Return types and block sizes of an artifact's quantized matrices, with how many have each where there are two."""
    stored = packings({"quantization": quantization}).values()
    found = Counter((packing.layout.bits, packing.layout.block_size) for packing in stored)
    several = len(found) > 1
    return " and ".join(
        f"int{bits} in blocks of {size}" + (f" ({count} tensors)" if several else "")
        for (bits, size), count in sorted(found.items())
    )


def pack(values: NDArray[np.uint8], layout: Layout) -> NDArray[np.uint8]:
    """Put integers into bytes, along the last axis; of 4 bits an odd one out is followed by 0."""
    if layout.bits == 8:
        return values
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], 1), np.uint8)], axis=-1)
    return np.asarray(values[..., 0::2] | (values[..., 1::2] << 4), dtype=np.uint8)


def unpack(packed: NDArray[Any], layout: Layout, count: int) -> NDArray[np.int16]:
    """Take integers out of bytes, along the last axis, the first `count` of them."""
    if layout.bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    return packed[..., :count].astype(np.int16)


def dequantize(
    parts: Mapping[str, NDArray[Any]], columns: int, layout: Layout, rows: slice = slice(None)
) -> NDArray[np.float32]:
    """Return what the stored parts, by suffix, stand for: `s·(q − z)`, rounded once, some rows of (m, n) float32."""
    scales = parts["scales"][rows]
    q = unpack(parts["q"][rows], layout, layout.block_size)
    if layout.symmetric:
        q = q - np.int16(layout.middle)
    else:
        q = q - unpack(parts["zeros"][rows], layout, scales.shape[1])[..., None]
    wide = q.astype(np.float32) * scales[..., None]
    return np.ascontiguousarray(wide.reshape(len(scales), -1)[:, :columns])
