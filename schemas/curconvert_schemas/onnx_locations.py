"""Changes where the external data of an ONNX graph lie."""

from __future__ import annotations

from curconvert_schemas.protobuf import children, text
from curconvert_schemas.protobuf_edits import edited, field

_EXTERNAL_DATA = (7, 5, 13)  # graph of ModelProto, initializer of GraphProto, external_data of TensorProto
_KEY, _VALUE = 1, 2  # of StringStringEntryProto


def with_data_under(graph: bytes, folder: str) -> bytes:
    """Return a sound graph with `folder/` before the location of each initializer's external data."""

    def moved(entry: memoryview) -> bytes:
        (key,), (value,) = children(entry, _KEY), children(entry, _VALUE)
        if text(key) != "location":
            return bytes(entry)
        return field(_KEY, bytes(key)) + field(_VALUE, f"{folder}/{text(value)}".encode())

    return edited(memoryview(graph), _EXTERNAL_DATA, moved)
