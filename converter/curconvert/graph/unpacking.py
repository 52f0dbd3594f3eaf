"""Emits standard operators that dequantize matrices.

DequantizeLinear dequantizes a matrix for a product. onnxruntime runs it in every call. With the session option
`session.disable_quant_qdq` = 1 it runs once, at load, and keeps a float32 matrix in memory. Plain arithmetic on
constants would be computed at load without any option. But its intermediate results stay in memory until the whole
model is folded, which needs several times the memory of the float32 model.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import onnx_ir as ir

from curconvert.base.packing import plane_mask
from curconvert.graph.emit import Emitter
from curconvert.graph.weights import Packed
from curconvert_runtime.format.quantized import Layout

_FLOAT, _UINT8, _UINT4 = ir.DataType.FLOAT, ir.DataType.UINT8, ir.DataType.UINT4


def integer_type(layout: Layout) -> ir.DataType:
    """Return the ONNX type in which a graph reads a matrix's integers: bytes if it joins them from planes."""
    return _UINT4 if layout.served == 4 and len(layout.planes) == 1 else _UINT8


def joined(emit: Emitter, planes: Mapping[str, ir.Value], layout: Layout) -> ir.Value:
    """Return a matrix's integers as `curconvert.base.packing.joined` does; onnxruntime computes them at load."""
    whole = [_placed(emit, planes[suffix], layout, *digits) for suffix, digits in layout.planes.items()]
    return functools.reduce(lambda high, low: emit("BitwiseOr", high, low), whole)


def _placed(emit: Emitter, plane: ir.Value, layout: Layout, size: int, place: int) -> ir.Value:
    """Return a plane's bits at their places in the integers, all others 0."""
    kept, pieces = plane_mask(layout, size) << place, []
    for shift in range(0, layout.served, size):
        left, piece = place - shift, plane
        if left:
            direction = "LEFT" if left > 0 else "RIGHT"
            piece = emit("BitShift", piece, emit.constant(abs(left), _UINT8), direction=direction)
        present = (0xFF << left) & 0xFF if left > 0 else 0xFF >> -left
        pieces.append(emit("BitwiseAnd", piece, emit.constant(kept, _UINT8)) if present & ~kept else piece)
    return emit("Concat", *pieces, axis=-1)


def expanded(emit: Emitter, packed: ir.Value, layout: Layout) -> ir.Value:
    """Return packed integers as one byte each, (m, padded n)."""
    return emit("Reshape", _integers(emit, layout, packed), emit.ints(0, -1))


def dequantized(emit: Emitter, packed: Packed) -> ir.Value:
    """Return the matrix `s·(q − z)` in float32, (m, padded n), with the columns that fill the last block.

    Args:
        emit: Collects the nodes.
        packed: The matrix, with integers of their own type, (m, padded n).
    """
    layout, rows = packed.layout, packed.shape[0]
    if packed.zeros is None:
        middle = emit.constant(layout.middle, _UINT8)
        zeros = emit("Expand", middle, emit.ints(rows, layout.blocks(packed.shape[1])))
    else:
        zeros = _of_blocks(emit, packed, packed.zeros)
    if integer_type(layout) is _UINT4:
        zeros = emit.cast(zeros, _UINT4)
    return emit("DequantizeLinear", packed.integers, packed.scales, zeros, axis=1, block_size=layout.block_size)


def unpacked(emit: Emitter, packed: Packed) -> ir.Value:
    """Return looked-up rows in float32, (rows, n); several axes of rows are flattened to one.

    Args:
        emit: Collects the nodes.
        packed: The rows, with integers as bytes.
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
    """Return the zero point of each block, (rows, blocks) uint8, without the padding of rows with odd block counts."""
    blocks = packed.layout.blocks(packed.shape[1])
    stored = blocks + blocks % 2 if packed.layout.served == 4 else blocks
    found = emit("Reshape", _integers(emit, packed.layout, zeros), emit.ints(-1, stored))
    return found if stored == blocks else emit("Slice", found, emit.ints(0), emit.ints(blocks), emit.ints(1))


def _integers(emit: Emitter, layout: Layout, stored: ir.Value) -> ir.Value:
    return _digits(emit, stored) if layout.served == 4 else stored


def _digits(emit: Emitter, packed: ir.Value) -> ir.Value:
    """Return both 4-bit integers of each byte, the low one first, along a new last axis of uint8."""
    four, last = emit.constant(4, _UINT8), emit.ints(-1)
    high = emit("BitShift", packed, four, direction="RIGHT")
    low = emit("BitShift", emit("BitShift", packed, four, direction="LEFT"), four, direction="RIGHT")
    return emit("Concat", emit("Unsqueeze", low, last), emit("Unsqueeze", high, last), axis=-1)
