"""Writes graph nodes through onnx_ir: names outputs, shares equal constants and keeps insertion order."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

MICROSOFT = "com.microsoft"
_FLOAT = ir.DataType.FLOAT


class Emitter:
    """Collects the nodes that replace one template node.

    Attributes:
        graph: The graph that gets the constants.
        stored: Element type of the weights. All other values are float32: 16 bits only save space, and their rounding
            is too large for sums of hundreds of products that cancel.
    """

    def __init__(self, graph: ir.Graph, stored: ir.DataType) -> None:
        self.graph = graph
        self.stored = stored
        self._pending: list[ir.Node] = []
        self._constants: dict[tuple[Any, ...], ir.Value] = {}
        self._exact: dict[ir.Value, ir.Value] = {}

    def __call__(self, op_type: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        """Add a node with one output and return that output."""
        return self.multiple(op_type, 1, *inputs, domain=domain, **attributes)[0]

    def multiple(
        self, op_type: str, outputs: int, *inputs: ir.Value | None, domain: str = "", **attributes: Any
    ) -> tuple[ir.Value, ...]:
        """Add a node and return its outputs."""
        node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=outputs)
        self._pending.append(node)
        return tuple(node.outputs)

    def take(self) -> list[ir.Node]:
        """Return the nodes added since the last call."""
        nodes, self._pending = self._pending, []
        return nodes

    def constant(self, value: Any, dtype: ir.DataType = _FLOAT) -> ir.Value:
        """Return an initializer that holds `value`; equal constants share one.

        Args:
            value: A number, list or array.
            dtype: Element type.
        """
        array = np.asarray(value, dtype=np.float64 if dtype.is_floating_point() else None).astype(dtype.numpy())
        key = (dtype, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            tensor = ir.Tensor(array, dtype=dtype, name=name)
            constant = ir.Value(name=name, type=ir.TensorType(dtype), shape=tensor.shape, const_value=tensor)
            self.graph.register_initializer(constant)
            self._constants[key] = constant
        return self._constants[key]

    def ints(self, *values: int) -> ir.Value:
        """Return a one-dimensional int64 constant."""
        return self.constant(np.array(values, dtype=np.int64), ir.DataType.INT64)

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """Cast to an element type."""
        return self("Cast", value, to=dtype)

    def exact(self, value: ir.Value) -> ir.Value:
        """Return a value in float32: the value itself, or a Cast that all uses of a 16-bit weight share."""
        if self.stored is _FLOAT or value.dtype != self.stored:
            return value
        if value not in self._exact:
            self._exact[value] = self.cast(value, _FLOAT)
        return self._exact[value]
