"""Emits the graph nodes of the sparse forms."""

from __future__ import annotations

import onnx_ir as ir

from curconvert.graph.dialect import Dialect
from curconvert.graph.forms.stored import Stored


def rows_product(dialect: Dialect, x: ir.Value, stored: Stored) -> ir.Value:
    """Multiply by the kept rows; all dropped outputs read one zero."""
    weight, order = stored.matrix("weight"), stored.index("order")
    # Append one zero to the last of three axes (batch, sequence, rank).
    padded = dialect.emit("Pad", dialect.linear(x, [weight]), dialect.emit.ints(0, 0, 0, 0, 0, 1))
    return dialect.ordered(padded, order)


def columns_product(dialect: Dialect, x: ir.Value, stored: Stored) -> ir.Value:
    """Multiply the kept inputs by their columns."""
    weight, order = stored.matrix("weight"), stored.index("order")
    return dialect.linear(dialect.ordered(x, order), [weight])
