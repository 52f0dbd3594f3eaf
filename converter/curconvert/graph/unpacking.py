"""Quantised matrices in standard operators.

A matrix that multiplies is dequantised by DequantizeLinear. onnxruntime does that in every call, unless the session
option `session.disable_quant_qdq` is 1: then once, at load, which takes the memory of a float32 matrix. Arithmetic on
constants would be folded at load without any option, but each of its intermediate results stays in memory until the
whole model is folded, several times the float32 model in all.
"""

from __future__ import annotations

import onnx_ir as ir

from curconvert.graph.emit import Emitter
from curconvert.graph.weights import Packed
from curconvert_runtime.quantized import MIDDLE

_FLOAT, _UINT8, _UINT4 = ir.DataType.FLOAT, ir.DataType.UINT8, ir.DataType.UINT4


def dequantised(emit: Emitter, packed: Packed) -> ir.Value:
    """Return a matrix as float32, (m, n) with the columns that fill the last block up: `Σ 16ⁱ·s·(q_i − z_i)`.

    Args:
        emit: Where nodes go.
        packed: With digits of 4 bits, (m, padded n).
    """
    layout, rows = packed.layout, packed.shape[0]
    blocks = layout.blocks(packed.shape[1])
    planes = []
    for plane, digits in enumerate(packed.digits):
        if packed.zeros:
            zeros = _of_blocks(emit, packed.zeros[plane], blocks)
        else:
            zeros = emit("Expand", emit.constant(MIDDLE, _UINT8), emit.ints(rows, blocks))
        power = 16.0 ** (len(packed.digits) - 1 - plane)
        scales = packed.scales if power == 1 else emit("Mul", packed.scales, emit.constant(power))
        size = layout.block_size
        planes.append(emit("DequantizeLinear", digits, scales, emit.cast(zeros, _UINT4), axis=1, block_size=size))
    return planes[0] if len(planes) == 1 else emit("Add", *planes)


def unpacked(emit: Emitter, packed: Packed) -> ir.Value:
    """Return rows that were looked up as float32, (rows, n); rows of any number of axes are flattened to one.

    Args:
        emit: Where nodes go.
        packed: Of the rows, with digits as bytes.
    """
    layout, columns = packed.layout, packed.shape[1]
    blocks = layout.blocks(columns)
    total = None
    for plane, digits in enumerate(packed.digits):
        values = emit.cast(emit("Reshape", _digits(emit, digits), emit.ints(-1, blocks, layout.block_size)), _FLOAT)
        if packed.zeros:
            zeros = emit.cast(_of_blocks(emit, packed.zeros[plane], blocks), _FLOAT)
            values = emit("Sub", values, emit("Unsqueeze", zeros, emit.ints(-1)))
        else:
            values = emit("Sub", values, emit.constant(float(MIDDLE)))
        total = values if total is None else emit("Add", emit("Mul", total, emit.constant(16.0)), values)
    assert total is not None
    scaled = emit("Mul", total, emit("Reshape", packed.scales, emit.ints(-1, blocks, 1)))
    rows = emit("Reshape", scaled, emit.ints(-1, packed.padded))
    return rows if packed.padded == columns else emit("Slice", rows, emit.ints(0), emit.ints(columns), emit.ints(1))


def _of_blocks(emit: Emitter, packed: ir.Value, blocks: int) -> ir.Value:
    """Return a digit for each block of each row, (rows, blocks) uint8: without the half byte that ends an odd row."""
    even = blocks + blocks % 2
    zeros = emit("Reshape", _digits(emit, packed), emit.ints(-1, even))
    return zeros if even == blocks else emit("Slice", zeros, emit.ints(0), emit.ints(blocks), emit.ints(1))


def _digits(emit: Emitter, packed: ir.Value) -> ir.Value:
    """Return both digits of each byte, low ones first, along a new last axis of uint8."""
    four, last = emit.constant(4, _UINT8), emit.ints(-1)
    high = emit("BitShift", packed, four, direction="RIGHT")
    low = emit("BitShift", emit("BitShift", packed, four, direction="LEFT"), four, direction="RIGHT")
    return emit("Concat", emit("Unsqueeze", low, last), emit("Unsqueeze", high, last), axis=-1)
