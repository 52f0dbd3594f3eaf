"""Emits the graph nodes of form `cur`."""

from __future__ import annotations

import onnx_ir as ir

from curconvert.graph.dialect import Dialect
from curconvert.graph.forms.stored import Stored


def product(dialect: Dialect, x: ir.Value, stored: Stored) -> ir.Value:
    """Multiply by R, U and C."""
    return dialect.linear(x, [stored.matrix("R"), stored.matrix("U"), stored.matrix("C")])
