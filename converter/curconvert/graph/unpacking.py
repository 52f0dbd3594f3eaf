"""Quantised matrices in standard operators of opset 17.

Of constants alone: onnxruntime computes them once, at load, and then multiplies in float32. DequantizeLinear, which has
blocks since opset 21, it computes in every call unless a session option says otherwise.
"""

from __future__ import annotations

import onnx_ir as ir

from curconvert.graph.emit import Emitter
from curconvert.graph.weights import Packed
from curconvert_runtime.quantized import MIDDLE

_FLOAT, _UINT8 = ir.DataType.FLOAT, ir.DataType.UINT8


def unpacked(emit: Emitter, packed: Packed) -> ir.Value:
    """Return `s·(q − z)` as float32 rows: (rows, n), rows of any number of axes flattened to one.

    Args:
        emit: Where nodes go.
        packed: The matrix, or some of its rows.
    """
    layout, columns = packed.layout, packed.shape[1]
    blocks = layout.blocks(columns)
    centred = None
    for plane, digits in enumerate(packed.digits):
        values = _digits(emit, digits, (-1, blocks, layout.block_size))
        if packed.zeros:
            even = blocks + blocks % 2
            zeros = emit("Reshape", _digits(emit, packed.zeros[plane], (-1, even)), emit.ints(-1, even, 1))
            if even > blocks:
                zeros = emit("Slice", zeros, emit.ints(0), emit.ints(blocks), emit.ints(1))
        else:
            zeros = emit.constant(float(MIDDLE))
        values = emit("Sub", values, zeros)
        centred = values if centred is None else emit("Add", emit("Mul", centred, emit.constant(16.0)), values)
    assert centred is not None
    scaled = emit("Mul", centred, emit("Reshape", packed.scales, emit.ints(-1, blocks, 1)))
    rows = emit("Reshape", scaled, emit.ints(-1, packed.padded))
    return rows if packed.padded == columns else emit("Slice", rows, emit.ints(0), emit.ints(columns), emit.ints(1))


def _digits(emit: Emitter, packed: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    """Return both digits of each byte, low ones first, as float32 of a shape."""
    four = emit.constant(4, _UINT8)
    high = emit("BitShift", packed, four, direction="RIGHT")
    low = emit("BitShift", emit("BitShift", packed, four, direction="LEFT"), four, direction="RIGHT")
    last = emit.ints(-1)
    pairs = emit("Concat", emit("Unsqueeze", low, last), emit("Unsqueeze", high, last), axis=-1)
    return emit.cast(emit("Reshape", pairs, emit.ints(*shape)), _FLOAT)
