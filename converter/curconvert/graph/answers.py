"""Logits of the last tokens only, for those who ask: a prompt needs them at its end, not at every token."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from curconvert_runtime.contract import FIRST_LOGITS

# What may stand between the products with the vocabulary and the logits: a bias, scaling, soft-capping, and the sum of
# the two products that an int8 head is.
_ELEMENTWISE = ("Add", "Mul", "Div", "Tanh")


def trim_answers(graph: ir.Graph) -> None:
    """Let a caller choose from which of the new tokens on logits are computed.

    The choice is an initialiser that is an input too: ONNX calls that a default, and clients that do not know it get
    logits for every token. It is where Python's slices begin, so -1 means the last token.

    Args:
        graph: A graph whose product with the vocabulary takes (batch, sequence, hidden), changed in place.
    """
    products = list(vocabulary_products(next(value for value in graph.outputs if value.name == "logits")))
    (hidden,) = {product.inputs[0] for product in products}
    first = _constant(graph, FIRST_LOGITS, 0)
    graph.inputs.append(first)
    end, axis = (
        _constant(graph, f"{FIRST_LOGITS}_{name}", value) for name, value in (("end", sys.maxsize), ("axis", 1))
    )
    cut = ir.node("Slice", [hidden, first, end, axis])
    graph.insert_after(hidden.producer(), cut)
    for product in products:
        product.replace_input_with(0, cut.outputs[0])


def vocabulary_products(value: ir.Value) -> Iterator[ir.Node]:
    """Yield the products with the vocabulary that the logits are an elementwise function of."""
    node = value.producer()
    if node is None:  # a constant
        return
    if node.op_type not in _ELEMENTWISE:
        yield node
        return
    for part in node.inputs:
        if part is not None:
            yield from vocabulary_products(part)


def _constant(graph: ir.Graph, name: str, value: int) -> ir.Value:
    tensor = ir.Tensor(np.array([value], np.int64), name=name)
    constant = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
    graph.register_initializer(constant)
    return constant
