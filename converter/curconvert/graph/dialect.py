"""Defines `Dialect`, the operations that both graphs implement. Lowering and forms only use these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import onnx_ir as ir

from curconvert.families.facts import AttentionFacts
from curconvert.graph.emit import Emitter
from curconvert.graph.weights import Packed, Weight
from curconvert_runtime.format.quantized import Layout


class Dialect(Protocol):
    """Emits the operators of one of the two graphs."""

    emit: Emitter
    opset_imports: Mapping[str, int]

    def integers(self, shape: tuple[int, int], layout: Layout) -> tuple[ir.DataType, tuple[int, ...]]:
        """Return element type and shape in which a product reads a quantized matrix's integers."""

    def arranged(self, integers: ir.Value, layout: Layout) -> ir.Value:
        """Return the bytes of a quantized matrix, (m, blocks, bytes of a block), in that type and shape."""

    def look_up(self, table: Packed, rows: ir.Value) -> ir.Value:
        """Return rows of a quantized matrix, dequantized."""

    def linear(self, x: ir.Value, weights: list[Weight]) -> ir.Value:
        """Return x·W₁ᵀ·W₂ᵀ… for weights in torch's (out, in) layout."""

    def as_rows(self, x: ir.Value, width: int) -> ir.Value:
        """Return x, (batch, sequence, width), in the shape that `multiply` takes."""

    def multiply(self, rows: ir.Value, weight: Weight) -> ir.Value:
        """Return rows·Wᵀ for rows from `as_rows`."""

    def from_rows(self, rows: ir.Value, width: int) -> ir.Value:
        """Return the result of `multiply` as (batch, sequence, width)."""

    def ordered(self, x: ir.Value, order: ir.Value, *, whole: bool = False) -> ir.Value:
        """Return x[:, :, order]; `whole` says that the order is as long as the axis."""

    def rms_norm(self, x: ir.Value, weight: ir.Value, epsilon: float) -> ir.Value:
        """Return the root-mean-square normalization of the last axis, times a weight."""

    def add_rms_norm(self, x: ir.Value, skip: ir.Value, weight: ir.Value, epsilon: float) -> tuple[ir.Value, ir.Value]:
        """Return the normalization of x + skip, and x + skip."""

    def gelu(self, x: ir.Value, approximate: str) -> ir.Value:
        """Return GELU, exact (`none`) or by its `tanh` approximation."""

    def silu(self, x: ir.Value) -> ir.Value:
        """Return SiLU, x·sigmoid(x)."""

    def attention(
        self,
        facts: AttentionFacts,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        past: tuple[ir.Value, ir.Value],
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Return the attention output and the present key and value; applies the rotary embedding."""
