"""Reads the fields of a message in protobuf's wire format, as far as ONNX uses the format."""

from __future__ import annotations

from collections.abc import Iterator


class MalformedError(ValueError):
    """The bytes are not a protobuf message."""


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the varint that begins at offset `at`, and the offset after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise MalformedError("a number runs past its end")


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, varint value or bytes) of one message; fixed-width fields are skipped."""
    at, end = 0, len(data)
    while at < end:
        key, at = varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = varint(data, at)
            yield number, value
        elif wire == 2:
            length, at = varint(data, at)
            if length > end - at:
                raise MalformedError("a field runs past the end")
            yield number, data[at : at + length]
            at += length
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
            if at > end:
                raise MalformedError("a field runs past the end")
        else:
            raise MalformedError(f"wire type {wire} is not used by ONNX")


def children(data: memoryview, wanted: int) -> Iterator[memoryview]:
    """Yield the bytes of each field with number `wanted`: a message or text."""
    for number, value in fields(data):
        if number == wanted and not isinstance(value, int):
            yield value


def text(value: int | memoryview) -> str:
    """Return a field's text."""
    if isinstance(value, int):
        raise MalformedError("expected text")
    return bytes(value).decode("utf-8")
