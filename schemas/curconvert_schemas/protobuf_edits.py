"""Changes fields of an encoded protobuf message, and copies all others byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from curconvert_schemas.protobuf import varint

_INTEGER, _EIGHT_BYTES, _BYTES = 0, 1, 2  # wire types


def field(number: int, content: bytes) -> bytes:
    """Return an encoded field that holds a message, a text or bytes."""
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def edited(data: memoryview, path: Sequence[int], edit: Callable[[memoryview], bytes]) -> bytes:
    """Return a sound message in which `edit` replaced the content of each field that `path` leads to.

    Args:
        data: The message.
        path: Numbers of message fields, from the outermost to the one to replace.
        edit: Gets a field's content and returns the new content.
    """
    if not path:
        return edit(data)
    parts: list[bytes | memoryview] = []
    at = 0
    while at < len(data):
        start = at
        key, at = varint(data, at)
        if key & 7 == _INTEGER:
            _, at = varint(data, at)
        elif key & 7 == _BYTES:
            length, at = varint(data, at)
            at += length
            if key >> 3 == path[0]:
                parts.append(field(path[0], edited(data[at - length : at], path[1:], edit)))
                continue
        else:
            at += 8 if key & 7 == _EIGHT_BYTES else 4
        parts.append(data[start:at])
    return b"".join(parts)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
