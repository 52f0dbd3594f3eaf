"""Reads protobuf's wire format, and only the one encoding that every writer uses.

Parsers differ in what they make of other encodings: one skips a tag above 2³², another drops its upper bits and finds a
field. So whatever has two readings is refused.
"""

from __future__ import annotations

from collections.abc import Iterator

INTEGER, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5  # wire types; 3 and 4 are groups, which ONNX does not use
_MOST_NUMBERS = 2**29  # a tag, number · 8 + wire type, has 32 bits


class MalformedError(ValueError):
    """The bytes are not a protobuf message, or parsers may disagree about them."""


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the varint of at most 64 bits that begins at offset `at`, and the offset after it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if byte == 0 and shift:
                raise MalformedError("a number is longer than it must be")
            if value >= 2**64:
                break
            return value, at
    raise MalformedError("a number runs past its end")


def fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Yield (field number, wire type, value) of one message; all values but varints are bytes."""
    at, end = 0, len(data)
    while at < end:
        key, at = (data[at], at + 1) if data[at] < 0x80 else varint(data, at)
        number, wire = key >> 3, key & 7
        if not 0 < number < _MOST_NUMBERS:
            raise MalformedError("a field's number is out of range")
        if wire == INTEGER:
            value, at = varint(data, at)
            yield number, wire, value
            continue
        if wire == BYTES:
            length, at = (data[at], at + 1) if at < end and data[at] < 0x80 else varint(data, at)
        elif wire in (EIGHT_BYTES, FOUR_BYTES):
            length = 8 if wire == EIGHT_BYTES else 4
        else:
            raise MalformedError(f"wire type {wire} is not used by ONNX")
        if length > end - at:
            raise MalformedError("a field runs past the end")
        yield number, wire, data[at : at + length]
        at += length


def children(data: memoryview, wanted: int) -> Iterator[memoryview]:
    """Yield the bytes of each field with number `wanted`: a message or text."""
    for number, wire, value in fields(data):
        if number == wanted and wire == BYTES and not isinstance(value, int):
            yield value


def text(value: int | memoryview) -> str:
    """Return a field's text."""
    if isinstance(value, int):
        raise MalformedError("expected text")
    return bytes(value).decode("utf-8")
