"""Converts the fused graph to float16, for GPUs whose matrix units multiply 16-bit numbers.

Products, attention, cache and the residual stream become float16. Float32 stays where float16 has too few digits or too
small a range: squares and means of a plain normalization, rotary angles, and everything after the lm_head's product.
onnxruntime's kernels sum in float32 anyway.
"""

from __future__ import annotations

import onnx_ir as ir

from curconvert.graph.lm_head import vocabulary_products

_HALF, _FLOAT = ir.DataType.FLOAT16, ir.DataType.FLOAT
_KERNELS = (
    "FastGelu", "FusedMatMul", "Gather", "GatherElements", "Gelu", "GroupQueryAttention", "QuickGelu",
    "RotaryEmbedding", "SkipSimplifiedLayerNormalization",
)  # fmt: skip
_WIDENING = ("Pow",)  # 256² is beyond float16
_ABOUT_FLOATS = ("Greater", "Shape")  # they read floats, but their results are not floats


def to_float16(graph: ir.Graph) -> None:
    """Make a fused graph compute in float16, in place; its cache becomes float16, its logits stay float32.

    Args:
        graph: Result of the lowering, with float16 weights and a Cast to float32 after each.
    """
    _Halving(graph).run()


class _Halving:
    """Walks over the nodes once. A value keeps its type and is cast for nodes that need another type.

    Kernels take float16. Other nodes compute in float32 if a computed input is float32, or if all inputs are constants.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._floats = {
            value: value.dtype
            for value in (*graph.inputs, *graph.initializers.values())
            if value.dtype in (_HALF, _FLOAT)
        }
        self._constants = set(graph.initializers.values())
        self._casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}

    def run(self) -> None:
        for value in self._graph.inputs:
            if value in self._floats and value not in self._constants:  # the cache
                self._computed(value, _HALF)
        logits = next(value for value in self._graph.outputs if value.name == "logits")
        heads = set(vocabulary_products(logits))
        for node in tuple(self._graph):
            if node.op_type == "Cast":
                self._drop(node)
                continue
            floats = [value for value in node.inputs if value in self._floats]
            if not floats or node.outputs[0].dtype is ir.DataType.BOOL or node.op_type in _ABOUT_FLOATS:
                continue
            kind = self._kind(node.op_type, [value for value in floats if value not in self._constants])
            for index, value in enumerate(node.inputs):
                if value in self._floats:
                    node.replace_input_with(index, self._as(value, kind, node))
            for output in node.outputs:
                self._computed(output, kind)
            if node in heads:
                self._widen(node)

    def _drop(self, node: ir.Node) -> None:
        """Remove the Cast of a weight or its rows; record the result type of an integer's Cast."""
        (source,), (target,) = node.inputs, node.outputs
        if source in self._floats:
            ir.convenience.replace_all_uses_with(target, source)
            self._graph.remove(node, safe=True)
        elif node.attributes["to"].as_int() == _FLOAT:
            self._computed(target, _FLOAT)

    def _kind(self, op_type: str, computed: list[ir.Value]) -> ir.DataType:
        if op_type in _KERNELS:
            return _HALF
        wide = op_type in _WIDENING or not computed or any(self._floats[value] is _FLOAT for value in computed)
        return _FLOAT if wide else _HALF

    def _computed(self, value: ir.Value, kind: ir.DataType) -> None:
        value.type = ir.TensorType(kind)
        self._floats[value] = kind

    def _as(self, value: ir.Value, kind: ir.DataType, user: ir.Node) -> ir.Value:
        """Return a value in a type, with a Cast before its first user if needed."""
        if self._floats[value] is kind:
            return value
        if (value, kind) not in self._casts:
            self._casts[value, kind] = self._cast(value, kind)
            self._graph.insert_before(user, self._casts[value, kind].producer())
        return self._casts[value, kind]

    def _cast(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        node = ir.node("Cast", [value], {"to": kind})
        self._computed(node.outputs[0], kind)
        return node.outputs[0]

    def _widen(self, head: ir.Node) -> None:
        """Cast the product with the vocabulary to float32, so that all later nodes compute in float32."""
        (product,) = head.outputs
        wide = self._cast(product, _FLOAT)
        wide.shape = product.shape
        self._graph.insert_after(head, wide.producer())
        ir.convenience.replace_all_uses_with(product, wide, replace_graph_outputs=True)
        wide.producer().replace_input_with(0, product)
        if product.name == "logits":
            product.name, wide.name = None, "logits"
