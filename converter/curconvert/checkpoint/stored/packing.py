"""Unpacks integers and four-bit floats that share a word."""

from __future__ import annotations

import torch

# E2M1: one sign bit, two bits of exponent, one bit of mantissa (OCP Microscaling Formats, version 1.0).
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def unpack_integers(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Return the signed integers of rows of 32-bit words, as int16.

    A word holds 32 // bits numbers, the first one in its lowest bits. They are stored with an offset of half their
    range, so that none is negative.

    Args:
        packed: (rows, words) int32.
        bits: Bits of a number.
        count: Numbers in a row; the rest of the last word is padding.
    """
    places = torch.arange(32 // bits, dtype=torch.int32) * bits
    numbers = (packed.unsqueeze(-1) >> places) & (2**bits - 1)
    signed: torch.Tensor = numbers.flatten(1)[:, :count] - 2 ** (bits - 1)
    return signed.to(torch.int16)


def unpack_e2m1(packed: torch.Tensor) -> torch.Tensor:
    """Return the float32 values of bytes that hold two E2M1 numbers each, the first one in the low half."""
    table = torch.tensor([*_E2M1, *(-value for value in _E2M1)])
    halves = torch.stack([packed & 15, packed >> 4], dim=-1)
    return table.take(halves.flatten(-2).long())


def e8m0(exponents: torch.Tensor) -> torch.Tensor:
    """Return the float64 values of E8M0 scales, powers of two that are stored as a byte with an offset of 127."""
    stored = exponents.view(torch.uint8)
    values = torch.exp2(stored.to(torch.float64) - 127)
    return torch.where(stored == 255, torch.nan, values)
