"""Emits the portable graph: standard operators only, left padding allowed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

import onnx_ir as ir

from curconvert.families.facts import AttentionFacts, ModelFacts
from curconvert.graph.emit import Emitter
from curconvert.graph.rotary import cos_sin
from curconvert.graph.unpacking import dequantized, expanded, integer_type, unpacked
from curconvert.graph.weights import Packed, Weight, width
from curconvert_runtime.format.quantized import Layout

OPSET_WITH_BITWISE, OPSET_WITH_BLOCKS = 18, 21
_OPSET_WITH_AXES = 18  # of ReduceMean, as an input

_BOOL, _INT64 = ir.DataType.BOOL, ir.DataType.INT64


class Portable:
    """Standard operators of opset 17, which every onnxruntime since 1.12 has on CPU and CUDA.

    Quantized matrices need opset 21: 4-bit integers, and DequantizeLinear with blocks.

    Args:
        emit: Collects the nodes.
        facts: The model's facts.
        inputs: The graph inputs by name.
        layouts: Layouts of the quantized matrices.
    """

    def __init__(
        self, emit: Emitter, facts: ModelFacts, inputs: Mapping[str, ir.Value], layouts: Collection[Layout] = ()
    ) -> None:
        self.opset_imports: Mapping[str, int] = {"": OPSET_WITH_BLOCKS if layouts else 17}
        self.emit = emit
        self._facts = facts
        self._input_ids = inputs["input_ids"]
        self._attention_mask = inputs["attention_mask"]
        self._position_ids = inputs["position_ids"]
        # The first layer that needs a table computes it; later layers share it.
        self._tables: dict[str, tuple[ir.Value, ir.Value]] = {}
        self._masks: dict[int | None, ir.Value] = {}
        self._rows: dict[ir.Value, ir.Value] = {}
        self._shapes: dict[int, ir.Value] = {}
        self._unpacked: dict[ir.Value, ir.Value] = {}
        self._batch_sequence: ir.Value | None = None

    def integers(self, shape: tuple[int, int], layout: Layout) -> tuple[ir.DataType, tuple[int, ...]]:
        """Return the shape of DequantizeLinear's input: rows of integers, padding included."""
        return integer_type(layout), (shape[0], layout.blocks(shape[1]) * layout.block_size)

    def arranged(self, integers: ir.Value, layout: Layout) -> ir.Value:
        """Return one byte for each integer."""
        return expanded(self.emit, integers, layout)

    def look_up(self, table: Packed, rows: ir.Value) -> ir.Value:
        """Return rows by looking up integers and scales, and unpacking only these."""
        chosen = replace(
            table, integers=self.emit("Gather", table.integers, rows), scales=self.emit("Gather", table.scales, rows),
            zeros=None if table.zeros is None else self.emit("Gather", table.zeros, rows),
        )  # fmt: skip
        return self.from_rows(unpacked(self.emit, chosen), table.shape[1])

    def linear(self, x: ir.Value, weights: list[Weight]) -> ir.Value:
        """Return x multiplied by one matrix after the other."""
        rows = self.as_rows(x, width(weights[0], 1))
        for weight in weights:
            rows = self.multiply(rows, weight)
        return self.from_rows(rows, width(weights[-1], 0))

    def ordered(self, x: ir.Value, order: ir.Value, *, whole: bool = False) -> ir.Value:
        """Return x[:, :, order]; `whole` says that the order is as long as the axis.

        GatherElements, with the same order for every token, is faster here: onnxruntime's Gather copies one block per
        index, and a block is a single number. The expanded order takes its shape from x. Otherwise onnxruntime would
        compute the orders of all layers at load and keep them in memory.
        """
        if whole:
            shape = self.emit("Shape", x)
        else:
            shape = self.emit("Concat", self.emit("Shape", x, start=0, end=2), self.emit.ints(1), axis=0)
        return self.emit("GatherElements", x, self.emit("Expand", order, shape), axis=-1)

    def multiply(self, rows: ir.Value, weight: Weight) -> ir.Value:
        """Multiply with Gemm(transB=1): weights keep torch's layout, and no transposed copy is made at load.

        Gemm takes two axes, so `as_rows` merges batch and sequence before, and `from_rows` splits them after.
        """
        if isinstance(weight, Packed):
            if weight.scales not in self._unpacked:  # dequantize a matrix once, even if two products use it
                self._unpacked[weight.scales] = dequantized(self.emit, weight)
            if missing := weight.padded - weight.shape[1]:  # pad the rows, which are smaller than the matrix
                rows = self.emit("Pad", rows, self.emit.ints(0, 0, 0, missing))
            return self.emit("Gemm", rows, self._unpacked[weight.scales], transB=1)
        return self.emit("Gemm", rows, self.emit.exact(weight), transB=1)

    def from_rows(self, rows: ir.Value, width: int) -> ir.Value:
        """Reshape to (batch, sequence, width)."""
        return self.emit("Reshape", rows, self._shape(width))

    def as_rows(self, x: ir.Value, width: int) -> ir.Value:
        """Reshape to (batch · sequence, width); all products with x share the result."""
        if x not in self._rows:
            self._rows[x] = self.emit("Reshape", x, self.emit.ints(-1, width))
        return self._rows[x]

    def _shape(self, width: int) -> ir.Value:
        """Return the shape (batch, sequence, width)."""
        if width not in self._shapes:
            self._batch_sequence = self._batch_sequence or self.emit("Shape", self._input_ids)
            self._shapes[width] = self.emit("Concat", self._batch_sequence, self.emit.ints(width), axis=0)
        return self._shapes[width]

    def rms_norm(self, x: ir.Value, weight: ir.Value, epsilon: float) -> ir.Value:
        """Normalize with the node pattern that onnxruntime fuses into its own kernel."""
        emit = self.emit
        square = emit("Pow", x, emit.constant(2.0))
        if self.opset_imports[""] < _OPSET_WITH_AXES:
            mean = emit("ReduceMean", square, axes=[-1], keepdims=1)
        else:
            mean = emit("ReduceMean", square, emit.ints(-1), keepdims=1)
        root = emit("Sqrt", emit("Add", mean, emit.constant(epsilon)))
        return emit("Mul", emit("Div", x, root), weight)

    def add_rms_norm(self, x: ir.Value, skip: ir.Value, weight: ir.Value, epsilon: float) -> tuple[ir.Value, ir.Value]:
        """Return the normalization of x + skip, and x + skip, from separate nodes."""
        total = self.emit("Add", x, skip)
        return self.rms_norm(total, weight, epsilon), total

    def gelu(self, x: ir.Value, approximate: str) -> ir.Value:
        """Return GELU from simpler operators, because the Gelu operator needs opset 20."""
        emit = self.emit
        half, one = emit.constant(0.5), emit.constant(1.0)
        if approximate == "tanh":
            cube = emit("Mul", emit("Mul", x, x), x)
            inner = emit("Add", x, emit("Mul", cube, emit.constant(0.044715)))
            bell = emit("Tanh", emit("Mul", inner, emit.constant(math.sqrt(2.0 / math.pi))))
        else:
            bell = emit("Erf", emit("Mul", x, emit.constant(math.sqrt(0.5))))
        return emit("Mul", emit("Mul", x, half), emit("Add", bell, one))

    def silu(self, x: ir.Value) -> ir.Value:
        """Return SiLU from Sigmoid and Mul."""
        return self.emit("Mul", x, self.emit("Sigmoid", x))

    def attention(
        self,
        facts: AttentionFacts,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        past: tuple[ir.Value, ir.Value],
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return attention from MatMul and Softmax.

        Query heads that share a key head get an extra axis, so keys and values are not repeated.
        """
        emit = self.emit
        size, groups = facts.head_dim, facts.heads // facts.kv_heads
        query = emit("Reshape", query, emit.ints(0, 0, facts.heads, size))
        key = emit("Reshape", key, emit.ints(0, 0, facts.kv_heads, size))
        value = emit("Reshape", value, emit.ints(0, 0, facts.kv_heads, size))
        if facts.rope is not None:
            query = self._rotate(query, facts.rope, size)
            key = self._rotate(key, facts.rope, size)
        present_key = keys = self._append(past[0], key)
        present_value = values = self._append(past[1], value)

        # (batch, kv_heads, groups, sequence, head_dim) against (batch, kv_heads, 1, total, head_dim)
        query = emit("Mul", query, emit.constant(facts.scale))
        query = emit("Reshape", query, emit.ints(0, 0, facts.kv_heads, groups, size))
        query = emit("Transpose", query, perm=[0, 2, 3, 1, 4])
        axis = emit.ints(2)
        keys, values = emit("Unsqueeze", keys, axis), emit("Unsqueeze", values, axis)
        scores = emit("MatMul", query, emit("Transpose", keys, perm=[0, 1, 2, 4, 3]))
        if facts.softcap is not None:
            cap = emit.constant(facts.softcap)
            scores = emit("Mul", emit("Tanh", emit("Div", scores, cap)), cap)
        # Replace scores instead of adding a large negative number: left-padding rows see no key and must stay finite.
        scores = emit("Where", self._mask(facts.window), scores, emit.constant(-1e30))
        mixed = emit("MatMul", emit("Softmax", scores, axis=-1), values)
        mixed = emit("Reshape", emit("Transpose", mixed, perm=[0, 3, 1, 2, 4]), emit.ints(0, 0, facts.heads * size))
        return mixed, present_key, present_value

    def _append(self, past: ir.Value, new: ir.Value) -> ir.Value:
        """Append new tokens, (batch, sequence, heads, head_dim), to the cached ones."""
        return self.emit("Concat", past, self.emit("Transpose", new, perm=[0, 2, 1, 3]), axis=2)

    def _rotate(self, x: ir.Value, kind: str, head_dim: int) -> ir.Value:
        """Rotate the pairs (i, i + rotary_dim/2) of each head; x is (batch, sequence, heads, head_dim)."""
        emit = self.emit
        rope = self._facts.ropes[kind]
        if kind not in self._tables:
            cos, sin = cos_sin(emit, rope, self._position_ids)
            axis = emit.ints(2)
            self._tables[kind] = (emit("Unsqueeze", cos, axis), emit("Unsqueeze", sin, axis))
        cos, sin = self._tables[kind]
        half = len(rope.inv_freq)
        rest = head_dim - 2 * half
        sizes = [half, half, rest] if rest else [half, half]
        first, second, *unrotated = emit.multiple("Split", len(sizes), x, emit.ints(*sizes), axis=-1)
        turned_first = emit("Sub", emit("Mul", first, cos), emit("Mul", second, sin))
        turned_second = emit("Add", emit("Mul", second, cos), emit("Mul", first, sin))
        return emit("Concat", turned_first, turned_second, *unrotated, axis=-1)

    def _mask(self, window: int | None) -> ir.Value:
        """Return which cache slots each query sees: bool, broadcastable to (batch, 1, 1, sequence, total).

        Slots count from the cache's start, padding included. A row's tokens are contiguous, so the distance between
        slots is the distance between tokens.
        """
        emit = self.emit
        if window not in self._masks:
            zero, one = emit.constant(0, _INT64), emit.constant(1, _INT64)
            total = emit("Squeeze", emit("Shape", self._attention_mask, start=1, end=2))
            current = emit("Squeeze", emit("Shape", self._input_ids, start=1, end=2))
            slots = emit("Range", zero, total, one)
            queries = emit("Unsqueeze", emit("Range", emit("Sub", total, current), total, one), emit.ints(1))
            seen = emit("LessOrEqual", slots, queries)
            if window is not None:
                oldest = emit("Sub", queries, emit.constant(window, _INT64))
                seen = emit("And", seen, emit("Less", oldest, slots))
            real = emit("Unsqueeze", emit.cast(self._attention_mask, _BOOL), emit.ints(1, 2, 3))
            self._masks[window] = emit("And", real, seen)
        return self._masks[window]
