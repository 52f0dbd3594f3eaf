"""`interpolative` in a graph."""

from __future__ import annotations

import onnx_ir as ir

from curconvert.graph.dialect import Dialect
from curconvert.graph.forms.stored import Stored
from curconvert.graph.weights import width


def product(dialect: Dialect, x: ir.Value, stored: Stored) -> ir.Value:
    """Multiply by R and by T, keep both products, and put their columns in order."""
    R, T, order = stored.matrix("R"), stored.matrix("T"), stored.index("order")
    rows = dialect.multiply(dialect.as_rows(x, width(R, 1)), R)
    both = dialect.emit("Concat", rows, dialect.multiply(rows, T), axis=-1)
    computed = width(R, 0) + width(T, 0)  # with a basis of two layers more than either takes
    return dialect.ordered(dialect.from_rows(both, computed), order, whole=computed == width(order, 0))
