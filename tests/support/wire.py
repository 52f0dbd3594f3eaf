"""Damages serialized ONNX models where parsers of protobuf may disagree: tags, lengths, repeated and hidden fields."""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np
from onnx import (
    AttributeProto,
    GraphProto,
    NodeProto,
    SparseTensorProto,
    StringStringEntryProto,
    TensorProto,
    TrainingInfoProto,
    helper,
    numpy_helper,
)

# message → field number → message, for the places where a field is worth damaging.
_INSIDE = {
    "model": {7: "graph", 8: "other"},
    "graph": {1: "node", 5: "tensor", 11: "other"},
    "node": {5: "attribute"},
    "tensor": {13: "other"},
}


class Part(NamedTuple):
    """One field of a message as bytes: tag, length (empty for other wire types), content."""

    tag: bytes
    length: bytes
    content: bytes


def varint(value: int, longer: int = 0) -> bytes:
    """Return a varint, with this many bytes more than it needs."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value]) if not longer else bytes([*out, value | 0x80, *[0x80] * (longer - 1), 0])


def part(number: int, content: bytes) -> Part:
    """Return a field with bytes."""
    return Part(varint(number << 3 | 2), varint(len(content)), content)


def _read(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at


def parts(data: bytes) -> list[Part]:
    """Return the fields of a sound message."""
    found, at = [], 0
    while at < len(data):
        tag, after = _read(data, at)
        if tag & 7 == 2:
            length, start = _read(data, after)
            end = start + length
        else:
            start = after
            end = _read(data, after)[1] if tag & 7 == 0 else after + (8 if tag & 7 == 1 else 4)
        found.append(Part(data[at:after], data[after:start], data[start:end]))
        at = end
    return found


def _outside(name: str) -> TensorProto:
    tensor = TensorProto(name=name, dims=[2], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "../secret"), ("offset", "0"), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def hidden() -> list[tuple[str, int, Part]]:
    """Return (message, number, field) of what our graphs never hold: code, subgraphs, data outside the folder."""
    branch = helper.make_graph([], "branch", [], [], [_outside("in a branch")])
    constant = helper.make_node("Constant", [], ["c"], value=_outside("constant"))
    sparse = SparseTensorProto(values=_outside("sparse"))
    nodes = [
        helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch), constant,
        helper.make_node("Loop", ["x"], ["y"], body=branch), helper.make_node("EPContext", [], [], "com.microsoft"),
        helper.make_node("Add", ["x"], ["y"], domain="evil"),
    ]  # fmt: skip
    attributes = [
        AttributeProto(name="body", type=AttributeProto.GRAPH, g=branch),
        AttributeProto(name="value", type=AttributeProto.TENSOR, t=_outside("attribute")),
        AttributeProto(name="value", type=AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse),
    ]
    function = helper.make_function("evil", "f", [], [], [constant], [])
    whole = GraphProto(node=nodes[:1], initializer=[_outside("whole graph")])
    found = [
        *(("graph", 1, each) for each in nodes), *(("node", 5, each) for each in attributes),
        ("graph", 5, _outside("plain")), ("graph", 15, sparse), ("model", 25, function), ("model", 7, whole),
        ("model", 20, TrainingInfoProto(algorithm=branch)),
        ("tensor", 13, StringStringEntryProto(key="location", value="../secret")),
    ]  # fmt: skip
    texts = [("node", 4, b"EPContext"), ("node", 7, b"evil")]
    return [(where, number, part(number, each.SerializeToString())) for where, number, each in found] + [
        (where, number, part(number, each)) for where, number, each in texts
    ]


def sound_model() -> bytes:
    """Return a small model of the kind that curconvert writes."""
    inline = numpy_helper.from_array(np.array([0, -1]), "shape")
    outside = TensorProto(name="w", dims=[2, 3], data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "model.safetensors"), ("offset", "16"), ("length", "24")):
        outside.external_data.add(key=key, value=value)
    nodes = [
        NodeProto(op_type="MatMul", input=["x", "w"], output=["y"]),
        helper.make_node("QuickGelu", ["y"], ["z"], domain="com.microsoft", alpha=1.0),
        helper.make_node("Transpose", ["z"], ["t"], perm=[1, 0]),
        helper.make_node("Reshape", ["t", "shape"], ["out"]),
    ]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    graph = helper.make_graph(nodes, "g", [value], [], [inline, outside])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    data: bytes = helper.make_model(graph, opset_imports=opsets).SerializeToString()
    return data


class Damage:
    """Draws damaged copies of `sound_model`."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._sound = sound_model()
        self._hidden = hidden()
        self._others = [field for _, _, field in self._hidden]

    def draw(self) -> bytes:
        """Return the next damaged model: one to three changes."""
        data = self._sound
        for _ in range(self._random.choice((1, 1, 2, 3))):
            try:
                data = self._changed(data, "model")
            except (IndexError, MemoryError, OverflowError):  # an earlier change left no sound message
                break
        return data if self._random.random() > 0.05 else self._cut(data)

    def _cut(self, data: bytes) -> bytes:
        at = self._random.randrange(len(data) + 1)
        return data[:at] + self._random.choice((b"", self._random.randbytes(3) + data[at:], data[at + 1 :]))

    def _changed(self, data: bytes, message: str) -> bytes:
        choice, found = self._random.choice, parts(data)
        if not found:
            return data
        at = self._random.randrange(len(found))
        chosen = found[at]
        inside = _INSIDE.get(message, {}).get(_read(chosen.tag, 0)[0] >> 3)
        if inside and chosen.length and self._random.random() < 0.75:
            content = self._changed(chosen.content, inside)
            found[at] = Part(chosen.tag, varint(len(content)), content)
        elif self._random.random() < 0.4:
            fits = [field for where, _, field in self._hidden if where == message] or self._others
            found.insert(self._random.randrange(len(found) + 1), self._disguised(choice(fits)))
        else:
            found[at : at + 1] = self._damaged(chosen, found)
        return b"".join(b"".join(each) for each in found)

    def _disguised(self, field: Part) -> Part:
        """Return a field, half the time under a tag that only some parsers take for it."""
        return field if self._random.random() < 0.5 else self._retagged(field)

    def _retagged(self, field: Part) -> Part:
        tag, longer = _read(field.tag, 0)[0], self._random.randrange(1, 5)
        changes = (varint(tag, longer), varint(tag + (longer << 32)), varint(tag + (longer << 61)), varint(tag & 7))
        return field._replace(tag=self._random.choice(changes))

    def _damaged(self, field: Part, others: list[Part]) -> list[Part]:
        choice, tag = self._random.choice, _read(field.tag, 0)[0]
        number = self._random.randrange(30)
        flipped = bytearray(field.content or b"\0")
        flipped[self._random.randrange(len(flipped))] ^= 1 << self._random.randrange(8)
        group = [Part(varint(tag & ~7 | 3), b"", b""), field, Part(varint(tag & ~7 | 4), b"", b"")]
        length = field.length and varint(len(field.content), self._random.randrange(1, 6))
        wrong = field.length and varint(self._random.choice((0, 1, len(field.content) + 1, 2**31, 2**63, 2**64 + 1)))
        return choice((
            [], [field, field], [field, choice(others)], [choice(others), field], group, [self._retagged(field)],
            [field._replace(length=length)], [field._replace(length=wrong)],
            [field._replace(tag=varint(number << 3 | tag & 7))], [field._replace(tag=varint(tag ^ choice((1, 2, 5))))],
            [field._replace(content=bytes(flipped))],
            [field] if field.length else [field._replace(content=varint(choice((0, 2, 2**32 + 1, 2**64 - 1, 2**64))))],
        ))  # fmt: skip
