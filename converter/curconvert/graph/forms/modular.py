"""The modular forms in a graph: a smaller matrix between smaller vectors."""

from __future__ import annotations

import onnx_ir as ir

from curconvert.graph.dialect import Dialect
from curconvert.graph.forms.stored import Stored


def product(dialect: Dialect, x: ir.Value, stored: Stored) -> ir.Value:
    """Multiply by what is kept."""
    return dialect.linear(x, [stored.matrix("weight")])
