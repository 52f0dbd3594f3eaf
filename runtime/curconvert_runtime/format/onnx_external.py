"""Finds the external data of an ONNX graph without the `onnx` package.

onnxruntime opens any file that a graph's initializers name. So every external tensor is listed and checked before.
The reader walks the protobuf wire format and knows only the fields that can lead to a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from curconvert_runtime.errors import IntegrityError, reading, unsound
from curconvert_schemas.protobuf import MalformedError, fields, text, varint

MAX_GRAPH_BYTES = 2**31 - 1  # protobuf's own limit
_MAX_DEPTH = 32

# message → field number → message, from onnx.proto3. Other fields are skipped.
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


def _external(data: memoryview) -> ExternalTensor | None:
    dims: list[int] = []
    data_type, name = 0, ""
    entries: list[tuple[str, str]] = []
    for number, value in fields(data):
        if number == _TENSOR_DIMS:
            if isinstance(value, int):
                dims.append(value)
                continue
            at = 0
            while at < len(value):  # several in one field
                dim, at = varint(value, at)
                dims.append(dim)
        elif number == _TENSOR_TYPE and isinstance(value, int):
            data_type = value
        elif number == _TENSOR_NAME:
            name = text(value)
        elif number == _TENSOR_EXTERNAL and isinstance(value, memoryview):
            pair = {key: text(entry) for key, entry in fields(value)}
            entries.append((pair.get(1, ""), pair.get(2, "")))
    if not entries:
        return None
    where = f"initializer {name[:200]!r}"
    keys = dict(entries)
    if len(keys) != len(entries) or not {"location", "offset", "length"} <= set(keys):
        raise MalformedError(f"{where} needs location, offset and length exactly once")
    numbers = (keys["offset"], keys["length"])
    if not all(number.isascii() and number.isdecimal() and len(number) < 20 for number in numbers):
        raise MalformedError(f"{where} has an offset or length that is not a number")
    offset, length = map(int, numbers)
    needed = (math.prod(dims) * _HALF_BYTES.get(data_type, 0) + 1) // 2
    if length != needed:
        raise MalformedError(f"{where} takes {length} bytes, its type and shape need {needed}")
    return ExternalTensor(name, keys["location"].removeprefix("./"), offset, length)


def _walk(data: memoryview, message: str, depth: int) -> Iterator[ExternalTensor]:
    if depth > _MAX_DEPTH:
        raise MalformedError("subgraphs are nested too deeply")
    for number, value in fields(data):
        if message == "node" and number == _NODE_OPERATOR and text(value) == "EPContext":
            raise MalformedError("operator EPContext loads precompiled code, which an artifact never holds")
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
    """Return every externally stored tensor of a graph file, subgraphs and functions included."""
    with reading(path):
        if path.stat().st_size > MAX_GRAPH_BYTES:
            raise IntegrityError(f"{path}: larger than 2 GiB, the limit of a graph; copy the file again")
        data = memoryview(path.read_bytes())
    try:
        return list(_walk(data, "model", 0))
    except ValueError as error:
        raise unsound(path, f"not a sound ONNX graph ({error})") from None
