"""Writes ONNX graphs without the onnx package: as much of onnx.proto3 as graphs made by hand need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

FLOAT, UINT8, INT32, INT64, BOOL, FLOAT16 = 1, 2, 6, 7, 9, 10
_TYPES = {"float32": FLOAT, "uint8": UINT8, "int32": INT32, "int64": INT64, "bool": BOOL, "float16": FLOAT16}


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _bytes(number: int, content: bytes | str) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return _varint(number << 3 | 2) + _varint(len(content)) + content


@dataclass
class Tensor:
    """An initializer, with its numbers inside, or outside where `external` has entries."""

    name: str
    dims: list[int]
    data_type: int
    raw: bytes = b""
    external: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, array: NDArray[Any]) -> Tensor:
        """Return an initializer that holds an array."""
        return cls(name, list(array.shape), _TYPES[str(array.dtype)], np.ascontiguousarray(array).tobytes())

    def encode(self) -> bytes:
        """Return a TensorProto."""
        out = b"".join(_number(1, dim) for dim in self.dims) + _number(2, self.data_type) + _bytes(8, self.name)
        if not self.external:
            return out + _bytes(9, self.raw)
        entries = (_bytes(13, _bytes(1, key) + _bytes(2, value)) for key, value in self.external.items())
        return out + b"".join(entries) + _number(14, 1)


@dataclass
class Node:
    """An operator; attributes are integers and lists of integers."""

    op_type: str
    input: list[str]
    output: list[str]
    domain: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return a NodeProto."""
        out = b"".join(_bytes(1, name) for name in self.input) + b"".join(_bytes(2, name) for name in self.output)
        out += _bytes(4, self.op_type) + _bytes(7, self.domain)
        return out + b"".join(_bytes(5, self._attribute(name, value)) for name, value in self.attributes.items())

    @staticmethod
    def _attribute(name: str, value: Any) -> bytes:
        if isinstance(value, int):
            kind, content = 2, _number(3, value)
        else:
            kind, content = 7, b"".join(_number(8, each) for each in value)
        return _bytes(1, name) + content + _number(20, kind)


def node(op_type: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any) -> Node:
    """Return an operator."""
    return Node(op_type, list(inputs), list(outputs), domain, attributes)


@dataclass
class Value:
    """An input or output; an axis is a number or a name, and None says nothing of the shape."""

    name: str
    elem_type: int
    shape: Sequence[int | str] | None

    def encode(self) -> bytes:
        """Return a ValueInfoProto."""
        tensor = _number(1, self.elem_type)
        if self.shape is not None:
            axes = (_number(1, axis) if isinstance(axis, int) else _bytes(2, axis) for axis in self.shape)
            tensor += _bytes(2, b"".join(_bytes(1, axis) for axis in axes))
        return _bytes(1, self.name) + _bytes(2, _bytes(1, tensor))


@dataclass
class Graph:
    """A whole model: one graph of standard operators and onnxruntime's."""

    node: list[Node]
    input: list[Value]
    output: list[Value]
    initializer: list[Tensor] = field(default_factory=list)
    opset: int = 17
    ir_version: int = 8

    def encode(self) -> bytes:
        """Return a ModelProto."""
        graph = b"".join(_bytes(1, each.encode()) for each in self.node) + _bytes(2, "graph")
        for number, parts in ((5, self.initializer), (11, self.input), (12, self.output)):
            graph += b"".join(_bytes(number, part.encode()) for part in parts)
        opsets = _bytes(8, _number(2, self.opset)) + _bytes(8, _bytes(1, "com.microsoft") + _number(2, 1))
        return _number(1, self.ir_version) + opsets + _bytes(7, graph)

    def tensor(self, name: str) -> Tensor:
        """Return the initializer of this name."""
        return next(tensor for tensor in self.initializer if tensor.name == name)
