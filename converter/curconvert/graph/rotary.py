"""Emits nodes that compute cosines and sines of the positions from the inverse frequencies."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from curconvert.families.facts import Rope
from curconvert.graph.emit import Emitter

_FLOAT = ir.DataType.FLOAT


def cos_sin(emit: Emitter, rope: Rope, position_ids: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Return cos and sin of position · inv_freq, times the attention scaling.

    Angles are always float32, as in transformers: float16 cannot hold all positions beyond 2048.

    Args:
        emit: Collects the nodes.
        rope: The frequencies.
        position_ids: int64, (batch, sequence).

    Returns:
        Two float32 values (batch, sequence, rotary_dim / 2).
    """
    positions = emit("Unsqueeze", emit.cast(position_ids, _FLOAT), emit.ints(-1))
    angles = emit("Mul", positions, _inv_freq(emit, rope, position_ids))
    scaling = emit.constant(rope.attention_scaling, _FLOAT)
    tables = (emit("Cos", angles), emit("Sin", angles))
    if rope.attention_scaling != 1.0:
        tables = (emit("Mul", tables[0], scaling), emit("Mul", tables[1], scaling))
    return tables


def _inv_freq(emit: Emitter, rope: Rope, position_ids: ir.Value) -> ir.Value:
    base = emit.constant(rope.inv_freq, _FLOAT)
    if rope.long_inv_freq is None and rope.ntk_factor is None:
        return base
    # As in transformers, one length for the whole batch: the largest position, plus one.
    length = emit("Add", emit.cast(emit("ReduceMax", position_ids, keepdims=0), _FLOAT), emit.constant(1.0, _FLOAT))
    original = emit.constant(float(rope.original_length), _FLOAT)
    if rope.ntk_factor is None:
        return emit("Where", emit("Greater", length, original), emit.constant(rope.long_inv_freq, _FLOAT), base)
    # Dynamic NTK raises the base to base·s^(d/(d−2)) with s = f·L/L₀ − (f − 1); the i-th frequency base^(−2i/d) is
    # then multiplied by s^(−2i/(d−2)), and s = 1 up to the original length.
    ratio = emit("Div", emit("Max", length, original), original)
    stretch = emit("Mul", ratio, emit.constant(rope.ntk_factor, _FLOAT))
    stretch = emit("Sub", stretch, emit.constant(rope.ntk_factor - 1.0, _FLOAT))
    half = len(rope.inv_freq)
    exponents = -np.arange(half, dtype=np.float64) / max(half - 1, 1)
    return emit("Mul", base, emit("Pow", stretch, emit.constant(exponents, _FLOAT)))
