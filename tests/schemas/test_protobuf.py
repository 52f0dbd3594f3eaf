"""Protobuf's wire format: one encoding of each message, and nothing that two parsers read differently."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curconvert_schemas.protobuf import BYTES, FOUR_BYTES, INTEGER, MalformedError, children, fields, varint
from support import wire


@given(st.integers(0, 2**64 - 1), st.integers(1, 3))
def test_a_number_has_one_encoding(value: int, longer: int) -> None:
    """The shortest one is read, any longer one refused."""
    data = wire.varint(value)
    assert varint(memoryview(data + b"rest"), 0) == (value, len(data))
    with pytest.raises(MalformedError):
        varint(memoryview(wire.varint(value, longer)), 0)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x80\x00", "longer than"),
        (b"\x08\x80\x00", "longer than"),
        (b"\x8a\x00\x01x", "longer than"),
        (b"\x0a\x81\x00x", "longer than"),
        (wire.varint(2**64), "past its end"),
        (b"\x08" + wire.varint(2**64), "past its end"),
        (b"\xff" * 12, "past its end"),
        (b"\x08", "past its end"),
        (b"\x0a", "past its end"),
        (b"\x00\x01", "out of range"),
        (b"\x02\x01x", "out of range"),
        (wire.varint(2**32 + 0x3A) + b"\x01x", "out of range"),
        (wire.varint(2**63 + 0x3A) + b"\x01x", "out of range"),
        (b"\x0b\x08\x01\x0c", "wire type 3"),
        (b"\x0c", "wire type 4"),
        (b"\x0e\x01", "wire type 6"),
        (b"\x0f\x01", "wire type 7"),
        (b"\x0a\x02x", "past the end"),
        (b"\x0a" + wire.varint(2**64 - 1) + b"x", "past the end"),
        (b"\x0d\x01\x02\x03", "past the end"),
        (b"\x09" + bytes(7), "past the end"),
    ],
)
def test_other_encodings_are_refused(data: bytes, words: str) -> None:
    """Long varints, tags of more than 32 bits, number 0, groups, and whatever runs past its end."""
    with pytest.raises(MalformedError, match=words):
        list(fields(memoryview(data)))


def test_every_field_comes_with_its_wire_type() -> None:
    """A reader can tell a number from text of the same field number."""
    data = memoryview(b"\x08\x07\x0a\x01x\x0d" + bytes(4) + wire.varint(2**32 - 8 | 2) + b"\x00")
    assert list(fields(data)) == [(1, INTEGER, 7), (1, BYTES, b"x"), (1, FOUR_BYTES, bytes(4)), (2**29 - 1, BYTES, b"")]
    assert list(children(data, 1)) == [b"x"]
