"""Edits the bytes of a checked ONNX graph before onnxruntime loads it."""

from __future__ import annotations

from curconvert_runtime.format.contract import FIRST_LOGITS
from curconvert_runtime.format.quantized import KEEPS_ACTIVATIONS, ROUNDS_ACTIVATIONS
from curconvert_schemas.protobuf import children, text
from curconvert_schemas.protobuf_edits import field

# Numbers of fields, from onnx.proto3.
_GRAPH = 7  # of ModelProto
_NODE, _INITIALIZER, _INPUT = 1, 5, 11  # of GraphProto
_OPERATOR, _ATTRIBUTE = 4, 5  # of NodeProto
_ATTRIBUTE_NAME, _TENSOR_NAME, _VALUE_NAME = 1, 8, 1
_INTEGER = 3 << 3  # of AttributeProto: the field's key byte


def with_first_logits(graph: bytes) -> bytes:
    """Return the graph with its constant `first_logits` as an input; without that constant, return it unedited.

    The constant stays as the input's default. The stored graph lacks the input, because onnxruntime warns about each
    input with a default. Appended bytes are enough: protobuf merges a message that follows another.
    """
    (body,) = children(memoryview(graph), _GRAPH)
    constants, inputs = _names(body, _INITIALIZER, _TENSOR_NAME), _names(body, _INPUT, _VALUE_NAME)
    if FIRST_LOGITS not in constants or FIRST_LOGITS in inputs:
        return graph
    shape = field(1, b"\x08\x01")  # one dimension, of 1
    tensor = b"\x08\x07" + field(2, shape)  # int64
    value = field(_VALUE_NAME, FIRST_LOGITS.encode()) + field(2, field(1, tensor))
    return graph + field(_GRAPH, field(_INPUT, value))


def keeping_activations(graph: bytes) -> bytes:
    """Return the graph with every MatMulNBits set to compute in float32 instead of rounding activations."""
    edited = bytearray(graph)
    for body in children(memoryview(edited), _GRAPH):
        for node in children(body, _NODE):
            if [text(name) for name in children(node, _OPERATOR)] != ["MatMulNBits"]:
                continue
            for attribute in children(node, _ATTRIBUTE):
                if [text(name) for name in children(attribute, _ATTRIBUTE_NAME)] == ["accuracy_level"]:
                    asked = bytes([_INTEGER, ROUNDS_ACTIVATIONS])
                    attribute[:] = bytes(attribute).replace(asked, bytes([_INTEGER, KEEPS_ACTIVATIONS]))
    return bytes(edited)


def _names(graph: memoryview, number: int, name: int) -> set[str]:
    return {text(found) for part in children(graph, number) for found in children(part, name)}
