"""Integers in bytes, and what they cost."""

from __future__ import annotations

import numpy as np

from curconvert.base.packing import bits_per_number, pack, packed_bytes, unpack
from curconvert_runtime.format.quantized import Layout


def test_integers_lie_in_order() -> None:
    """Of 4 bits two to a byte, the first one low; of 8 bits one."""
    assert pack(np.array([[1, 2, 3, 4]], np.uint8), Layout(4, 32, True)).tolist() == [[0x21, 0x43]]
    assert pack(np.array([[0x1A, 0x2B]], np.uint8), Layout(8, 32, True)).tolist() == [[0x1A, 0x2B]]


def test_an_odd_row_ends_with_half_a_byte() -> None:
    """Zero points of an odd number of blocks fill whole bytes in each row."""
    layout = Layout(4, 32, False)
    packed = pack(np.array([[1, 2, 3], [4, 5, 6]], np.uint8), layout)
    assert packed.tolist() == [[0x21, 0x03], [0x54, 0x06]]
    assert unpack(packed, layout, 3).tolist() == [[1, 2, 3], [4, 5, 6]]


def test_bits_of_a_number_count_its_share_of_the_scale() -> None:
    """A float32 scale for 64 numbers adds half a bit to 4; a zero point a sixteenth more."""
    assert bits_per_number(Layout(4, 64, True)) == 4.5
    assert bits_per_number(Layout(4, 64, False)) == 4.5625
    assert bits_per_number(Layout(8, 32, True)) == 9


def test_bytes_are_those_of_all_parts() -> None:
    """Three rows of 70 numbers: blocks of 32 are padded, and so are the bytes of zero points."""
    assert packed_bytes(Layout(4, 32, True), (3, 70)) == 3 * (3 * 16 + 3 * 4)
    assert packed_bytes(Layout(4, 32, False), (3, 70)) == 3 * (3 * 16 + 3 * 4 + 2)
    assert packed_bytes(Layout(8, 64, False), (3, 70)) == 3 * (2 * 64 + 2 * 4 + 2)
