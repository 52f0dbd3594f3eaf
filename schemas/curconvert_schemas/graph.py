"""Reads an ONNX graph as curconvert writes graphs, and refuses every other one.

onnxruntime opens files that a graph names, runs its subgraphs, loads precompiled code, and calls operators that never
end or fill the memory. So a graph holds only fields and operators that a written graph needs. Whatever another parser
could read in another way is refused.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from curconvert_schemas.protobuf import BYTES, FOUR_BYTES, INTEGER, MalformedError, fields, text

MAX_BYTES = 2**23  # graphs hold no weights: one of 126 layers takes about 2 MB
MICROSOFT = "com.microsoft"
_STANDARD = (
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "Cast", "Concat", "Cos", "DequantizeLinear", "Div",
    "Erf", "Expand", "Gather", "GatherElements", "Gemm", "Greater", "Less", "LessOrEqual", "MatMul", "Max", "Mul",
    "Pad", "Pow", "Range", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Reshape", "Shape", "Sigmoid", "Sin", "Size",
    "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where",
)  # fmt: skip
_CONTRIBUTED = (
    "FastGelu", "FusedMatMul", "GatherBlockQuantized", "Gelu", "GroupQueryAttention", "MatMulNBits", "QuickGelu",
    "RotaryEmbedding", "SkipSimplifiedLayerNormalization",
)  # fmt: skip
OPERATORS = frozenset([("", name) for name in _STANDARD] + [(MICROSOFT, name) for name in _CONTRIBUTED])
"""Domain and name of every operator of our graphs. None of them calls a graph."""
_SIZES = {"Expand": (1,), "Range": (0, 1, 2), "Pad": (1,)}  # inputs that decide how large an output is


class _Field(NamedTuple):
    wire: int
    repeated: bool = False


_TEXT, _TEXTS = _Field(BYTES), _Field(BYTES, repeated=True)  # or messages
_NUMBER, _NUMBERS = _Field(INTEGER), _Field(INTEGER, repeated=True)
_FLOAT, _FLOATS = _Field(FOUR_BYTES), _Field(FOUR_BYTES, repeated=True)
# message → field number → what is allowed, from onnx.proto3. No other field is allowed: subgraphs, local functions,
# training information, sparse and optional values are such. Values (11 to 13 of a graph) are left to onnxruntime.
_FIELDS: Mapping[str, Mapping[int, _Field]] = {
    "model": {1: _NUMBER, 2: _TEXT, 3: _TEXT, 4: _TEXT, 5: _NUMBER, 7: _TEXT, 8: _TEXTS},
    "graph": {1: _TEXTS, 2: _TEXT, 5: _TEXTS, 11: _TEXTS, 12: _TEXTS, 13: _TEXTS},
    "node": {1: _TEXTS, 2: _TEXTS, 3: _TEXT, 4: _TEXT, 5: _TEXTS, 7: _TEXT},
    "attribute": {1: _TEXT, 2: _FLOAT, 3: _NUMBER, 4: _TEXT, 7: _FLOATS, 8: _NUMBERS, 9: _TEXTS, 20: _NUMBER},
    "tensor": {1: _NUMBERS, 2: _NUMBER, 8: _TEXT, 9: _TEXT, 13: _TEXTS, 14: _NUMBER},
    "entry": {1: _TEXT, 2: _TEXT},
    "opset": {1: _TEXT, 2: _NUMBER},
}
_FOREIGN = {
    ("model", 20): "training information", ("model", 25): "local functions", ("graph", 15): "sparse tensors",
    ("attribute", 5): "a tensor in an attribute", ("attribute", 6): "a subgraph", ("attribute", 11): "subgraphs",
}  # fmt: skip
# TensorProto.DataType → half bytes per element, for the types that our tensors can have; 21 is UINT4.
_HALF_BYTES = {1: 8, 2: 2, 3: 2, 4: 4, 5: 4, 6: 8, 7: 16, 9: 2, 10: 4, 11: 16, 12: 8, 13: 16, 16: 4, 21: 1}
_INT64 = 7
_MOST_FIELDS = 2**16  # of a message inside a graph
_MOST_AXES = 8


@dataclass(frozen=True)
class ExternalTensor:
    """A tensor whose bytes are in a file outside the graph.

    Attributes:
        name: Initializer name (untrusted text).
        location: File name that the graph gives, without a leading `./` (untrusted text).
        offset, length: First byte in that file, and number of bytes, which equals what shape and type need.
    """

    name: str
    location: str
    offset: int
    length: int


@dataclass(frozen=True)
class GraphContents:
    """What a graph can make onnxruntime do.

    Attributes:
        tensors: Its external tensors, in the file's order.
        operators: Domain and name of each node's operator, in the file's order.
    """

    tensors: list[ExternalTensor]
    operators: list[tuple[str, str]]


def read_graph(data: bytes) -> GraphContents:
    """Return what a serialized ONNX model holds.

    Raises:
        ValueError: It is no ONNX model, or curconvert writes no such graph.
    """
    graphs: list[memoryview] = []
    for number, value in _fields(memoryview(data), "model"):
        if number == 7:
            graphs.append(_bytes(value))
        elif number == 8:
            domain = _text(_collected(value, "opset"), 1)
            if not any(domain == known for known, _ in OPERATORS):
                raise MalformedError(f"no graph of curconvert uses the domain {domain[:80]!r}")
    if not graphs:
        raise MalformedError("it holds no graph")
    return _graph(graphs[0])


def _graph(data: memoryview) -> GraphContents:
    found = GraphContents([], [])
    sizes: list[tuple[str, str]] = []  # operator, name of an input that decides a size
    constants: dict[str, int | None] = {}
    for number, value in _fields(data, "graph"):
        if number == 1:
            operator, inputs = _node(value)
            found.operators.append(operator)
            places = _SIZES.get(operator[1], ())
            sizes += [(operator[1], inputs[place]) for place in places if place < len(inputs)]
        elif number == 5:
            found.tensors.extend(_tensor(value, constants))
    bytes_of_weights = sum(tensor.length for tensor in found.tensors)
    for name, constant in sizes:
        size = constants.get(constant, 0)  # others are computed from the inputs' shapes
        if size is None or size > bytes_of_weights:
            raise MalformedError(f"operator {name} would make a tensor larger than all weights of the graph")
    return found


def _node(value: int | memoryview) -> tuple[tuple[str, str], list[str]]:
    parts = _collected(value, "node")
    operator = (_text(parts, 7), _text(parts, 4))
    if operator not in OPERATORS:
        domain, name = (part[:80] for part in operator)
        raise MalformedError(f"no graph of curconvert has the operator {name!r} of the domain {domain!r}")
    for attribute in parts.get(5, ()):
        if 1 not in _collected(attribute, "attribute"):
            raise MalformedError("an attribute has no name")
    return operator, [text(name) for name in parts.get(1, ())] if operator[1] in _SIZES else []


def _tensor(value: int | memoryview, constants: dict[str, int | None]) -> list[ExternalTensor]:
    """Return the tensor if it is external; note the product of its numbers if it is a constant inside the graph."""
    parts = _collected(value, "tensor")
    name, kind = _text(parts, 8), _number(parts, 2)
    where = f"initializer {name[:200]!r}"
    if kind not in _HALF_BYTES:
        raise MalformedError(f"{where} has element type {kind}, which no weight has")
    axes = [axis for axis in parts.get(1, []) if isinstance(axis, int)]
    if len(axes) > _MOST_AXES:
        raise MalformedError(f"{where} has more than {_MOST_AXES} axes")
    needed = (math.prod(axes) * _HALF_BYTES[kind] + 1) // 2
    entries = [_collected(entry, "entry") for entry in parts.get(13, ())]
    if bool(entries) != (_number(parts, 14) == 1) or (entries and 9 in parts):
        raise MalformedError(f"{where} is neither inside nor outside the graph")
    if not entries:
        raw = _bytes(parts[9][0]) if 9 in parts else memoryview(b"")
        if len(raw) != needed:
            raise MalformedError(f"{where} has {len(raw)} bytes, its type and shape need {needed}")
        numbers = struct.unpack(f"<{len(raw) // 8}q", raw) if kind == _INT64 and len(raw) < 1024 else None
        constants[name] = None if numbers is None else math.prod(max(1, abs(each)) for each in numbers)
        return []
    keys = {_text(entry, 1): _text(entry, 2) for entry in entries}
    if len(keys) != len(entries) or not {"location", "offset", "length"} <= set(keys):
        raise MalformedError(f"{where} needs location, offset and length exactly once")
    place = (keys["offset"], keys["length"])
    if not all(number.isascii() and number.isdecimal() and len(number) < 20 for number in place):
        raise MalformedError(f"{where} has an offset or length that is not a number")
    offset, length = map(int, place)
    if length != needed:
        raise MalformedError(f"{where} takes {length} bytes, its type and shape need {needed}")
    constants[name] = None
    return [ExternalTensor(name, keys["location"].removeprefix("./"), offset, length)]


def _fields(data: memoryview, message: str) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the fields of a message that our graphs have; refuse others, and repeated ones that must appear once."""
    known, seen = _FIELDS[message], set()
    for number, wire, value in fields(data):
        field = known.get(number)
        if field is None or wire != field.wire:
            what = _FOREIGN.get((message, number), f"field {number} of wire type {wire} in a {message}")
            raise MalformedError(f"no graph of curconvert has {what}")
        if not field.repeated:
            if number in seen:
                raise MalformedError(f"field {number} of a {message} appears twice")
            seen.add(number)
        yield number, value


def _collected(value: int | memoryview, message: str) -> dict[int, list[int | memoryview]]:
    found: dict[int, list[int | memoryview]] = {}
    for count, (number, part) in enumerate(_fields(_bytes(value), message)):
        if count == _MOST_FIELDS:
            raise MalformedError(f"a {message} has more than {_MOST_FIELDS} fields")
        found.setdefault(number, []).append(part)
    return found


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise MalformedError("expected bytes")
    return value


def _text(parts: Mapping[int, list[int | memoryview]], number: int) -> str:
    return text(parts[number][0]) if number in parts else ""


def _number(parts: Mapping[int, list[int | memoryview]], number: int) -> int:
    value = parts[number][0] if number in parts else 0
    if not isinstance(value, int):
        raise MalformedError("expected a number")
    return value
