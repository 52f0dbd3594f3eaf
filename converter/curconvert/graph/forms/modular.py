"""Emits the graph nodes of the modular forms, which multiply by a smaller matrix."""

from __future__ import annotations

import onnx_ir as ir

from curconvert.graph.dialect import Dialect
from curconvert.graph.forms.stored import Stored


def product(dialect: Dialect, x: ir.Value, stored: Stored) -> ir.Value:
    """Multiply by the kept rows or columns."""
    return dialect.linear(x, [stored.matrix("weight")])
