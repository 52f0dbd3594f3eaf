"""Emits the fused graph: onnxruntime's contributed operators, right padding with a length per row.

It uses no attention bias, because with a bias the CUDA kernel of GroupQueryAttention is slower or fails.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from curconvert.families.facts import AttentionFacts, ModelFacts
from curconvert.graph.emit import MICROSOFT, Emitter
from curconvert.graph.portable import OPSET_WITH_BITWISE, Portable
from curconvert.graph.rotary import cos_sin
from curconvert.graph.weights import Packed, Weight
from curconvert_runtime.format.quantized import ROUNDS_ACTIVATIONS, Layout

_INT32, _INT64 = ir.DataType.INT32, ir.DataType.INT64


class Fused(Portable):
    """GroupQueryAttention, RotaryEmbedding, SkipSimplifiedLayerNormalization, FusedMatMul, QuickGelu and FastGelu.

    Operations without a contributed operator come from `Portable`. onnxruntime fuses the plain normalization at load.
    """

    _lengths: tuple[ir.Value, ir.Value] | None = None
    _rows_of_tables: ir.Value | None = None
    _has_normed = False

    def __init__(
        self, emit: Emitter, facts: ModelFacts, inputs: Mapping[str, ir.Value], layouts: Collection[Layout] = ()
    ) -> None:
        super().__init__(emit, facts, inputs, layouts)
        in_planes = any(len(layout.planes) > 1 for layout in layouts)
        self.opset_imports = {"": OPSET_WITH_BITWISE if in_planes else 17, MICROSOFT: 1}

    def integers(self, shape: tuple[int, int], layout: Layout) -> tuple[ir.DataType, tuple[int, ...]]:
        """Return the shape that MatMulNBits takes: bytes by rows and blocks."""
        return ir.DataType.UINT8, (shape[0], layout.blocks(shape[1]), layout.block_size * layout.served // 8)

    def arranged(self, integers: ir.Value, layout: Layout) -> ir.Value:
        """Return the bytes unchanged."""
        return integers

    def as_rows(self, x: ir.Value, width: int) -> ir.Value:
        """Return x unchanged, because FusedMatMul accepts three axes."""
        return x

    def look_up(self, table: Packed, rows: ir.Value) -> ir.Value:
        """Return rows through GatherBlockQuantized."""
        parts = (table.integers, rows, table.scales, *([] if table.zeros is None else [table.zeros]))
        found = self.emit(
            "GatherBlockQuantized", *parts, domain=MICROSOFT, gather_axis=0, quantize_axis=1,
            block_size=table.layout.block_size, bits=table.layout.served,
        )  # fmt: skip
        columns = table.shape[1]
        if table.padded == columns:
            return found
        return self.emit("Slice", found, self.emit.ints(0), self.emit.ints(columns), self.emit.ints(-1))

    def multiply(self, rows: ir.Value, weight: Weight) -> ir.Value:
        """Multiply with FusedMatMul(transB=1) or MatMulNBits, so that weights keep torch's layout."""
        if isinstance(weight, Packed):
            parts = (rows, weight.integers, weight.scales, *([] if weight.zeros is None else [weight.zeros]))
            layout = weight.layout
            return self.emit(
                "MatMulNBits", *parts, domain=MICROSOFT, K=weight.shape[1], N=weight.shape[0], bits=layout.served,
                block_size=layout.block_size, accuracy_level=ROUNDS_ACTIVATIONS,
            )  # fmt: skip
        return self.emit("FusedMatMul", rows, self.emit.exact(weight), transB=1, domain=MICROSOFT)

    def from_rows(self, rows: ir.Value, width: int) -> ir.Value:
        """Return the rows unchanged."""
        return rows

    def rms_norm(self, x: ir.Value, weight: ir.Value, epsilon: float) -> ir.Value:
        """Normalize the embedding with the add-and-normalize kernel, adding zeros; others with the plain pattern.

        onnxruntime replaces the plain pattern at load by a kernel without an ONNX schema. In most families only the
        embedding's normalization is without an addition, so nothing is left to fuse at load.
        """
        if self._has_normed:
            return super().rms_norm(x, weight, epsilon)
        return self.add_rms_norm(x, self.emit("Sub", x, x), weight, epsilon)[0]

    def add_rms_norm(self, x: ir.Value, skip: ir.Value, weight: ir.Value, epsilon: float) -> tuple[ir.Value, ir.Value]:
        """Add and normalize in one kernel."""
        self._has_normed = True
        normed, _, _, total = self.emit.multiple(
            "SkipSimplifiedLayerNormalization", 4, x, skip, weight, domain=MICROSOFT, epsilon=epsilon
        )
        return normed, total

    def gelu(self, x: ir.Value, approximate: str) -> ir.Value:
        """Return GELU from one kernel."""
        return self.emit("FastGelu" if approximate == "tanh" else "Gelu", x, domain=MICROSOFT)

    def silu(self, x: ir.Value) -> ir.Value:
        """Return SiLU from one kernel: QuickGelu is x·sigmoid(alpha·x)."""
        return self.emit("QuickGelu", x, domain=MICROSOFT, alpha=1.0)

    def attention(
        self,
        facts: AttentionFacts,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        past: tuple[ir.Value, ir.Value],
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return attention from GroupQueryAttention, which handles causality, windows and row lengths."""
        if facts.rope is not None:
            query = self._turn(query, facts.rope, facts.heads, facts.head_dim)
            key = self._turn(key, facts.rope, facts.kv_heads, facts.head_dim)
        attributes: dict[str, float | int] = {
            "num_heads": facts.heads,
            "kv_num_heads": facts.kv_heads,
            "scale": facts.scale,
        }
        if facts.softcap is not None:
            attributes["softcap"] = facts.softcap
        if facts.window is not None:
            attributes["local_window_size"] = facts.window
        inputs = (query, key, value, *past, *self._row_lengths())
        mixed, present_key, present_value = self.emit.multiple(
            "GroupQueryAttention", 3, *inputs, domain=MICROSOFT, **attributes
        )
        return mixed, present_key, present_value

    def _row_lengths(self) -> tuple[ir.Value, ir.Value]:
        """Return the operator's `seqlens_k` (tokens per row, less one) and `total_sequence_length`, both int32."""
        emit = self.emit
        if self._lengths is None:
            tokens = emit("ReduceSum", self._attention_mask, emit.ints(1), keepdims=0)
            last = emit("Sub", tokens, emit.constant(1, _INT64))
            total = emit("Squeeze", emit("Shape", self._attention_mask, start=1, end=2))
            self._lengths = (emit.cast(last, _INT32), emit.cast(total, _INT32))
        return self._lengths

    def _turn(self, x: ir.Value, kind: str, heads: int, head_dim: int) -> ir.Value:
        """Rotate x, (batch, sequence, heads · head_dim), with the RotaryEmbedding operator.

        The operator reads rows of a table by position. This graph computes a table with one row per token of the call
        and passes row numbers as positions. So the table does not grow with the context.
        """
        emit = self.emit
        half = len(self._facts.ropes[kind].inv_freq)
        if kind not in self._tables:
            flat = emit.ints(-1, half)
            cos, sin = cos_sin(emit, self._facts.ropes[kind], self._position_ids)
            self._tables[kind] = (emit("Reshape", cos, flat), emit("Reshape", sin, flat))
        if self._rows_of_tables is None:
            shape = emit("Shape", self._input_ids)
            count = emit("Squeeze", emit("Size", self._input_ids))
            numbers = emit("Range", emit.constant(0, _INT64), count, emit.constant(1, _INT64))
            self._rows_of_tables = emit("Reshape", numbers, shape)
        attributes = {"num_heads": heads}
        if 2 * half != head_dim:
            attributes["rotary_embedding_dim"] = 2 * half
        cos, sin = self._tables[kind]
        return emit("RotaryEmbedding", x, self._rows_of_tables, cos, sin, domain=MICROSOFT, **attributes)
