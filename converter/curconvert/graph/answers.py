"""Logits of the last tokens only, for those who ask: a prompt needs them at its end, not at every token."""

from __future__ import annotations

import sys

import numpy as np
import onnx_ir as ir

from curconvert_runtime.contract import FIRST_LOGITS

# What may stand between the product with the vocabulary and the logits: scaling and soft-capping.
_ELEMENTWISE = ("Mul", "Div", "Tanh")


def trim_answers(graph: ir.Graph) -> None:
    """Let a caller choose from which of the new tokens on logits are computed.

    The choice is an initialiser that is an input too: ONNX calls that a default, and clients that do not know it get
    logits for every token. It is where Python's slices begin, so -1 means the last token.

    Args:
        graph: A graph whose product with the vocabulary takes (batch, sequence, hidden), changed in place.
    """
    product = next(value.producer() for value in graph.outputs if value.name == "logits")
    while product is not None and product.op_type in _ELEMENTWISE:
        product = next(node for node in (value.producer() for value in product.inputs if value) if node)
    assert product is not None
    hidden = product.inputs[0]
    first = _constant(graph, FIRST_LOGITS, 0)
    graph.inputs.append(first)
    end, axis = (
        _constant(graph, f"{FIRST_LOGITS}_{name}", value) for name, value in (("end", sys.maxsize), ("axis", 1))
    )
    cut = ir.node("Slice", [hidden, first, end, axis])
    graph.insert_before(product, cut)
    product.replace_input_with(0, cut.outputs[0])


def _constant(graph: ir.Graph, name: str, value: int) -> ir.Value:
    tensor = ir.Tensor(np.array([value], np.int64), name=name)
    constant = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(constant)
    return constant
