"""Writing nodes: a thin layer over onnx_ir that names outputs, shares constants and keeps insertion order."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

MICROSOFT = "com.microsoft"
_FLOAT = ir.DataType.FLOAT


class Emitter:
    """Collects the nodes that replace one template node.

    Attributes:
        graph: The graph that constants are added to.
        dtype: Element type of activations.
    """

    def __init__(self, graph: ir.Graph, dtype: ir.DataType) -> None:
        self.graph = graph
        self.dtype = dtype
        self._pending: list[ir.Node] = []
        self._constants: dict[tuple[Any, ...], ir.Value] = {}
        self._wide: set[ir.Value] = set()
        self._narrowed: dict[ir.Value, ir.Value] = {}

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

    def constant(self, value: Any, dtype: ir.DataType | None = None) -> ir.Value:
        """Return an initialiser that holds `value`; equal constants share one.

        Args:
            value: A number, list or array.
            dtype: Element type; that of the activations when None.
        """
        dtype = dtype or self.dtype
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

    def in_float(self, value: ir.Value) -> ir.Value:
        """Return a value in float32: itself when it is float32 already."""
        return value if self.dtype is _FLOAT or value in self._wide else self.wide(self.cast(value, _FLOAT))

    def is_wide(self, value: ir.Value) -> bool:
        """Tell whether a value is float32 although activations are 16-bit."""
        return value in self._wide

    def wide(self, value: ir.Value) -> ir.Value:
        """Remember that a value is float32 although activations may be 16-bit."""
        if self.dtype is not _FLOAT:
            self._wide.add(value)
            value.type = ir.TensorType(_FLOAT)
        return value

    def narrow(self, value: ir.Value) -> ir.Value:
        """Return a value in the activations' type: itself unless it is one that `wide` remembers."""
        if value not in self._wide:
            return value
        if value not in self._narrowed:
            self._narrowed[value] = self.cast(value, self.dtype)
        return self._narrowed[value]

    def from_float(self, value: ir.Value) -> ir.Value:
        """Return a float32 value in the activations' type."""
        return value if self.dtype is _FLOAT else self.cast(value, self.dtype)
