"""Finds the external data of an ONNX graph without the `onnx` package.

onnxruntime opens whatever file a graph's initialisers name. Before a graph gets there, every tensor of it is looked up
here: a walk over the protobuf wire format that knows only the fields which can lead to a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from curconvert_runtime.errors import IntegrityError

MAX_GRAPH_BYTES = 2**31 - 1  # protobuf's own limit
_MAX_DEPTH = 32

# message → field number → message, from onnx.proto3. Everything else is skipped unread.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "function": {7: "node", 11: "attribute"},
}
# TensorProto.DataType → half bytes per element, for the types that can be stored externally here; 21 is UINT4.
_HALF_BYTES = {1: 8, 2: 2, 3: 2, 4: 4, 5: 4, 6: 8, 7: 16, 9: 2, 10: 4, 11: 16, 12: 8, 13: 16, 16: 4, 21: 1}
_NODE_OPERATOR = 4
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_EXTERNAL = 1, 2, 8, 13


@dataclass(frozen=True)
class ExternalTensor:
    """A tensor whose bytes lie outside the graph.

    Attributes:
        name: Initialiser name (untrusted text).
        location: File as the graph names it, without a leading `./` (untrusted text).
        offset: First byte in that file.
        length: Number of bytes; equals what shape and type need.
    """

    name: str
    location: str
    offset: int
    length: int


class _MalformedError(ValueError):
    """The bytes are not a protobuf message."""


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _MalformedError("a number runs past its end")


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, varint value or bytes) of one message; fixed-width fields are skipped."""
    at, end = 0, len(data)
    while at < end:
        key = data[at]  # nearly all numbers have one byte, and there are tens of thousands of them
        at += 1
        if key >= 0x80:
            key, at = _varint(data, at - 1)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
        elif wire == 2:
            length = data[at] if at < end else 0x80
            at += 1
            if length >= 0x80:
                length, at = _varint(data, at - 1)
            if length > end - at:
                raise _MalformedError("a field runs past the end")
            yield number, data[at : at + length]
            at += length
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
            if at > end:
                raise _MalformedError("a field runs past the end")
        else:
            raise _MalformedError(f"wire type {wire} is not used by ONNX")


def _text(value: int | memoryview) -> str:
    if isinstance(value, int):
        raise _MalformedError("expected text")
    return bytes(value).decode("utf-8")


def _external(data: memoryview) -> ExternalTensor | None:
    dims: list[int] = []
    data_type, name = 0, ""
    entries: list[tuple[str, str]] = []
    for number, value in _fields(data):
        if number == _TENSOR_DIMS:
            packed = isinstance(value, memoryview)
            at = 0
            while packed and at < len(value):  # type: ignore[arg-type]
                dim, at = _varint(value, at)  # type: ignore[arg-type]
                dims.append(dim)
            if isinstance(value, int):
                dims.append(value)
        elif number == _TENSOR_TYPE and isinstance(value, int):
            data_type = value
        elif number == _TENSOR_NAME:
            name = _text(value)
        elif number == _TENSOR_EXTERNAL and isinstance(value, memoryview):
            pair = {key: _text(text) for key, text in _fields(value)}
            entries.append((pair.get(1, ""), pair.get(2, "")))
    if not entries:
        return None
    where = f"initialiser {name[:200]!r}"
    keys = dict(entries)
    if len(keys) != len(entries) or not {"location", "offset", "length"} <= set(keys):
        raise _MalformedError(f"{where} needs location, offset and length exactly once")
    numbers = (keys["offset"], keys["length"])
    if not all(text.isascii() and text.isdecimal() and len(text) < 20 for text in numbers):
        raise _MalformedError(f"{where} has an offset or length that is not a number")
    offset, length = map(int, numbers)
    needed = (math.prod(dims) * _HALF_BYTES.get(data_type, 0) + 1) // 2
    if length != needed:
        raise _MalformedError(f"{where} takes {length} bytes, its type and shape need {needed}")
    return ExternalTensor(name, keys["location"].removeprefix("./"), offset, length)


def _walk(data: memoryview, message: str, depth: int) -> Iterator[ExternalTensor]:
    if depth > _MAX_DEPTH:
        raise _MalformedError("subgraphs are nested too deeply")
    for number, value in _fields(data):
        if message == "node" and number == _NODE_OPERATOR and _text(value) == "EPContext":
            raise _MalformedError("operator EPContext loads precompiled code, which an artifact never holds")
        child = _CHILDREN[message].get(number)
        if child is None or isinstance(value, int):
            continue
        if child == "tensor":
            found = _external(value)
            if found is not None:
                yield found
        else:
            yield from _walk(value, child, depth + 1)


def external_tensors(path: Path) -> list[ExternalTensor]:
    """Return every externally stored tensor of a graph file, subgraphs and functions included.

    Raises:
        IntegrityError: The file is not an ONNX model, or a tensor's entries contradict its type and shape.
    """
    try:
        if path.stat().st_size > MAX_GRAPH_BYTES:
            raise IntegrityError(f"{path}: larger than a graph can be")
        return list(_walk(memoryview(path.read_bytes()), "model", 0))
    except OSError as error:
        raise IntegrityError(f"{path}: cannot be read ({error.strerror}); restore the file") from None
    except ValueError as error:
        raise IntegrityError(f"{path}: not a sound ONNX graph ({error}); convert the model again") from None
