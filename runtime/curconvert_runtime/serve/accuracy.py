"""What quantised products do with their other factor, the activations.

onnxruntime's MatMulNBits has kernels that round activations to 8 bits, in the blocks of the weight, and multiply
integers: `accuracy_level` 4, for which graphs ask. In float32, level 1, a product takes about twice as long with 4
bits, and with 8 bits far longer than an unquantised one, because the weight is unpacked in every call.
"""

from __future__ import annotations

KEEPS_ACTIVATIONS, ROUNDS_ACTIVATIONS = 1, 4


def _attribute(level: int) -> bytes:
    # onnx.proto3: AttributeProto.name (field 1) and AttributeProto.i (field 3), in the order in which they are written.
    name = b"accuracy_level"
    return b"\x0a" + bytes([len(name)]) + name + b"\x18" + bytes([level])


def keeping_activations(graph: bytes) -> bytes:
    """Return a serialised graph whose quantised products compute in float32."""
    return graph.replace(_attribute(ROUNDS_ACTIVATIONS), _attribute(KEEPS_ACTIVATIONS))
