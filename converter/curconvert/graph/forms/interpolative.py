"""Emits the graph nodes of form `interpolative`."""

from __future__ import annotations

import onnx_ir as ir

from curconvert.graph.dialect import Dialect
from curconvert.graph.forms.stored import Stored
from curconvert.graph.weights import width


def product(dialect: Dialect, x: ir.Value, stored: Stored) -> ir.Value:
    """Multiply by R and then by T, concatenate both products, and reorder their columns."""
    R, T, order = stored.matrix("R"), stored.matrix("T"), stored.index("order")
    rows = dialect.multiply(dialect.as_rows(x, width(R, 1)), R)
    both = dialect.emit("Concat", rows, dialect.multiply(rows, T), axis=-1)
    computed = width(R, 0) + width(T, 0)  # more than the outputs if two layers share R
    return dialect.ordered(dialect.from_rows(both, computed), order, whole=computed == width(order, 0))
