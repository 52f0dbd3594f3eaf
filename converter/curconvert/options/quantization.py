"""What a user asks for when matrices shall be quantized."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from curconvert.base.checks import one_of
from curconvert.base.errors import InputError
from curconvert.base.packing import bits_per_number
from curconvert_runtime.format.quantized import BITS, BLOCK_SIZES, Layout

TYPES = tuple(f"int{bits}" for bits in BITS)
MIXED = "mixed"
ROUNDINGS = ("nearest", "gptq")
_BLOCK_SIZES = {4: 64, 8: 32}


def stored_bytes(itemsize: int, quantization: Quantization | None) -> float:
    """Return the bytes of a stored number: `itemsize` in the deployed dtype, or those of a quantized matrix."""
    if quantization is None:
        return itemsize
    return (quantization.bits_per_weight or bits_per_number(quantization.layout)) / 8


@dataclass(frozen=True)
class Quantization:
    """How stored matrices are quantized.

    Attributes:
        type: `int4` or `int8`, or `mixed`: each matrix has one of them.
        block_size: Columns that share a scale; None is 64 for `int4` and 32 for `int8`.
        asymmetric: Whether each block has a zero point.
        rounding: `nearest`, or `gptq` for the least error of the outputs on the calibration text.
        bits_per_weight: Budget of `mixed`: bits of a number at most, over all quantized matrices, with scales, zero
            points and padding.
        widths: Bits of each matrix by weight name, once they are chosen; `mixed` only.
    """

    type: str
    block_size: int | None = None
    asymmetric: bool = False
    rounding: str = "gptq"
    bits_per_weight: float | None = None
    widths: Mapping[str, int] | None = None

    def __post_init__(self) -> None:
        if not self.mixed:
            one_of("--quantize", self.type, TYPES)
        if self.bits_per_weight is not None and not self.mixed:
            raise InputError("--bits-per-weight chooses int4 or int8 for each matrix; leave --quantize out")
        if self.block_size is not None:
            one_of("--block-size", self.block_size, BLOCK_SIZES)
        one_of("--rounding", self.rounding, ROUNDINGS)
        if self.bits_per_weight is not None:
            self.check_budget(*(bits_per_number(self.single(bits).layout) for bits in BITS))

    @classmethod
    def of(
        cls,
        quantize: str | None,
        block_size: int | None = None,
        asymmetric: bool = False,
        rounding: str | None = None,
        bits_per_weight: float | None = None,
    ) -> Self | None:
        """Return what command-line options ask for, None where nothing shall be quantized.

        Raises:
            InputError: A value is not one of its option's, or stands there without what it belongs to.
        """
        if quantize is None and bits_per_weight is None:
            given = {"--block-size": block_size, "--asymmetric": asymmetric or None, "--rounding": rounding}
            for option, value in given.items():
                if value is not None:
                    raise InputError(f"{option}: belongs to --quantize or --bits-per-weight, neither is given")
            return None
        chosen = cls(quantize or MIXED, block_size, asymmetric, bits_per_weight=bits_per_weight)
        return chosen if rounding is None else replace(chosen, rounding=rounding)

    @property
    def mixed(self) -> bool:
        """Whether each matrix has a width of its own."""
        return self.type == MIXED and self.bits_per_weight is not None

    def single(self, bits: int) -> Self:
        """Return the same with one width for all matrices."""
        return replace(self, type=f"int{bits}", bits_per_weight=None, widths=None)

    def of_matrix(self, name: str) -> Self:
        """Return what applies to one matrix, by its weight name."""
        if not self.mixed:
            return self
        assert self.widths is not None  # chosen before anything is stored
        return self.single(self.widths[name])

    def check_budget(self, least: float, most: float) -> None:
        """Refuse a budget that no choice of widths can meet, or that the widest leaves unused.

        Args:
            least: Bits of a number where all matrices are as narrow as can be.
            most: Where all are as wide as can be.
        """
        assert self.bits_per_weight is not None
        if not least <= self.bits_per_weight <= most:
            narrow, wide = (self.single(bits).layout for bits in BITS)
            least, most = math.ceil(1000 * least) / 1000, math.floor(1000 * most) / 1000  # what is said is accepted
            raise InputError(
                f"--bits-per-weight {self.bits_per_weight:g}: expected {least:g} (all int4, blocks of "
                f"{narrow.block_size}) to {most:g} (all int8, blocks of {wide.block_size})"
            )

    @property
    def layout(self) -> Layout:
        """How the numbers are stored; of `mixed` the narrowest."""
        bits = min(BITS) if self.mixed else int(self.type.removeprefix("int"))
        return Layout(bits, self.block_size or _BLOCK_SIZES[bits], not self.asymmetric)

    @property
    def uses_statistics(self) -> bool:
        """Whether rounding looks at the inputs of the calibration text."""
        return self.rounding == "gptq"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON, the default block size filled in."""
        size = self.block_size if self.mixed else self.layout.block_size
        budget = {"bits_per_weight": self.bits_per_weight} if self.mixed else {}
        return {
            "type": self.type, "block_size": size, "asymmetric": self.asymmetric, "rounding": self.rounding, **budget
        }  # fmt: skip
