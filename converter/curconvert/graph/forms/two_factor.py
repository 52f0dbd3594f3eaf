"""Emits the graph nodes of form `two_factor`."""

from __future__ import annotations

import onnx_ir as ir

from curconvert.graph.dialect import Dialect
from curconvert.graph.forms.stored import Stored


def product(dialect: Dialect, x: ir.Value, stored: Stored) -> ir.Value:
    """Multiply by B and A."""
    return dialect.linear(x, [stored.matrix("B"), stored.matrix("A")])
