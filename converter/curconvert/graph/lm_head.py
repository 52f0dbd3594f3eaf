"""Changes the lm_head's product: only for the requested tokens, and in slices if it is large."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from curconvert.families.skeleton import EMBEDDING, HEAD
from curconvert_runtime.format.contract import FIRST_LOGITS, SLICE

# Operators allowed between the lm_head's products and the logits: bias, scaling, soft cap, and the sum of the two
# products of an int8 lm_head.
_ELEMENTWISE = ("Add", "Mul", "Div", "Tanh")
_FLOAT = ir.DataType.FLOAT
_SLICE_BYTES = 2**25
_PANEL = 16  # columns that kernels of onnxruntime's CPU provider process at a time


def choose_logits(graph: ir.Graph) -> None:
    """Add the constant `first_logits`, the index of the first new token that gets logits, to a graph.

    It is 0, so other clients get logits for every token, and onnxruntime removes the Slice. This project's runtime
    turns the constant into an input. The index works as in a Python slice: -1 means the last token.

    Args:
        graph: A graph whose lm_head's product takes (batch, sequence, hidden), changed in place.
    """
    products = list(vocabulary_products(next(value for value in graph.outputs if value.name == "logits")))
    (hidden,) = {product.inputs[0] for product in products}
    first = _constant(graph, FIRST_LOGITS, 0)
    end, axis = (
        _constant(graph, f"{FIRST_LOGITS}_{name}", value) for name, value in (("end", sys.maxsize), ("axis", 1))
    )
    cut = ir.node("Slice", [hidden, first, end, axis])
    graph.insert_after(hidden.producer(), cut)
    for product in products:
        product.replace_input_with(0, cut.outputs[0])


def split_head(graph: ir.Graph, most_bytes: int = _SLICE_BYTES) -> None:
    """Split the product of a large float32 lm_head into several, each with a range of its rows.

    onnxruntime multiplies with rearranged copies and releases each tensor after copying it. With a single product, the
    largest tensor of a small model would be in memory twice at load. A tied one would stay there twice, because the
    look-up needs it too.

    Args:
        graph: A fused graph whose weights are bound to their bytes, changed in place.
        most_bytes: Most bytes of a slice, apart from rounding to whole panels.
    """
    for product in list(vocabulary_products(next(value for value in graph.outputs if value.name == "logits"))):
        if product.op_type != "FusedMatMul":
            continue
        weight = product.inputs[1]
        stored = weight.const_value
        if not isinstance(stored, ir.ExternalTensor) or stored.dtype is not _FLOAT or stored.nbytes <= most_bytes:
            continue  # 16-bit weights are converted to float32 before they are copied, so splitting saves nothing
        nodes = []
        for number, rows in enumerate(_slices(stored, -(-stored.nbytes // most_bytes))):
            graph.register_initializer(rows)
            name, inputs = f"{product.name}.{number}", [product.inputs[0], rows]
            nodes.append(ir.node(product.op_type, inputs, product.attributes, domain=product.domain, name=name))
        joined = ir.node("Concat", [node.outputs[0] for node in nodes], {"axis": -1}, name=f"{product.name}.joined")
        nodes.append(joined)
        ir.convenience.replace_nodes_and_values(graph, product, [product], nodes, product.outputs, joined.outputs)
        if not weight.uses():
            graph.initializers.pop(stored.name)


def _slices(tensor: ir.ExternalTensor, count: int) -> Iterator[ir.Value]:
    """Yield the rows of a stored matrix as initializers of about equal size, named as slices."""
    rows, width = tensor.shape.numpy()
    row = tensor.nbytes // rows
    height = -(-rows // (count * _PANEL)) * _PANEL
    name = HEAD if tensor.name == EMBEDDING else tensor.name
    for number, first in enumerate(range(0, rows, height)):
        shape = ir.Shape((min(height, rows - first), width))
        part = ir.ExternalTensor(
            tensor.location,
            tensor.offset + first * row,
            shape[0] * row,
            tensor.dtype,
            shape=shape,
            name=f"{name}{SLICE}{number}",
            base_dir=tensor.base_dir,
        )
        yield ir.Value(name=part.name, type=ir.TensorType(part.dtype), shape=shape, const_value=part)


def vocabulary_products(value: ir.Value) -> Iterator[ir.Node]:
    """Yield the lm_head's products, found by walking back from the logits through elementwise operators."""
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
