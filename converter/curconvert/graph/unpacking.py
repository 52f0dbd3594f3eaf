"""Quantized matrices in standard operators.

A matrix that multiplies is dequantized by DequantizeLinear. onnxruntime does that in every call, unless the session
option `session.disable_quant_qdq` is 1: then once, at load, which takes the memory of a float32 matrix. Arithmetic on
constants would be folded at load without any option, but each of its intermediate results stays in memory until the
whole model is folded, several times the float32 model in all.
"""

from __future__ import annotations

import onnx_ir as ir

from curconvert.graph.emit import Emitter
from curconvert.graph.weights import Packed
from curconvert_runtime.format.quantized import Layout

_FLOAT, _UINT8, _UINT4 = ir.DataType.FLOAT, ir.DataType.UINT8, ir.DataType.UINT4


def integer_type(layout: Layout) -> ir.DataType:
    """Return the type of a matrix's integers."""
    return _UINT4 if layout.bits == 4 else _UINT8


def dequantized(emit: Emitter, packed: Packed) -> ir.Value:
    """Return a matrix as float32, (m, n) with the columns that fill the last block up: `s·(q − z)`.

    Args:
        emit: Where nodes go.
        packed: With integers of their own type, (m, padded n).
    """
    layout, rows = packed.layout, packed.shape[0]
    if packed.zeros is None:
        middle = emit.constant(layout.middle, _UINT8)
        zeros = emit("Expand", middle, emit.ints(rows, layout.blocks(packed.shape[1])))
    else:
        zeros = _of_blocks(emit, packed, packed.zeros)
    if layout.bits == 4:
        zeros = emit.cast(zeros, _UINT4)
    return emit("DequantizeLinear", packed.integers, packed.scales, zeros, axis=1, block_size=layout.block_size)


def unpacked(emit: Emitter, packed: Packed) -> ir.Value:
    """Return rows that were looked up as float32, (rows, n); rows of any number of axes are flattened to one.

    Args:
        emit: Where nodes go.
        packed: Of the rows, with integers as bytes.
    """
    layout, columns = packed.layout, packed.shape[1]
    blocks = layout.blocks(columns)
    integers = emit("Reshape", _integers(emit, layout, packed.integers), emit.ints(-1, blocks, layout.block_size))
    if packed.zeros is None:
        zeros = emit.constant(float(layout.middle))
    else:
        zeros = emit("Unsqueeze", emit.cast(_of_blocks(emit, packed, packed.zeros), _FLOAT), emit.ints(-1))
    difference = emit("Sub", emit.cast(integers, _FLOAT), zeros)
    scaled = emit("Mul", difference, emit("Reshape", packed.scales, emit.ints(-1, blocks, 1)))
    rows = emit("Reshape", scaled, emit.ints(-1, packed.padded))
    return rows if packed.padded == columns else emit("Slice", rows, emit.ints(0), emit.ints(columns), emit.ints(1))


def _of_blocks(emit: Emitter, packed: Packed, zeros: ir.Value) -> ir.Value:
    """Return a zero point for each block of each row, (rows, blocks) uint8: without the half byte after an odd row."""
    blocks = packed.layout.blocks(packed.shape[1])
    stored = blocks + blocks % 2 if packed.layout.bits == 4 else blocks
    found = emit("Reshape", _integers(emit, packed.layout, zeros), emit.ints(-1, stored))
    return found if stored == blocks else emit("Slice", found, emit.ints(0), emit.ints(blocks), emit.ints(1))


def _integers(emit: Emitter, layout: Layout, stored: ir.Value) -> ir.Value:
    return _digits(emit, stored) if layout.bits == 4 else stored


def _digits(emit: Emitter, packed: ir.Value) -> ir.Value:
    """Return both digits of each byte, low ones first, along a new last axis of uint8."""
    four, last = emit.constant(4, _UINT8), emit.ints(-1)
    high = emit("BitShift", packed, four, direction="RIGHT")
    low = emit("BitShift", emit("BitShift", packed, four, direction="LEFT"), four, direction="RIGHT")
    return emit("Concat", emit("Unsqueeze", low, last), emit("Unsqueeze", high, last), axis=-1)
