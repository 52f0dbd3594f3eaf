"""Defines the options of quantization, and the stored bytes per number."""

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
SCALE_DTYPES = ("float16", "float32")
_BLOCK_SIZES = {8: 32}  # other widths: 64


def stored_bytes(itemsize: int, quantization: Quantization | None) -> float:
    """Return the bytes per stored number: of a quantized matrix, or `itemsize` without quantization."""
    if quantization is None:
        return itemsize
    return (quantization.bits_per_weight or bits_per_number(quantization.layout)) / 8


@dataclass(frozen=True)
class Quantization:
    """How to quantize the stored matrices.

    Attributes:
        type: `int3` to `int8`, or `mixed`, which chooses one of them for each matrix.
        block_size: Columns that share a scale: 32, 64 or 128. None is 32 for `int8` and 64 for the others.
        asymmetric: Store a zero point for each block.
        rounding: `nearest`, or `gptq`, which minimizes the output error on the calibration text.
        bits_per_weight: Budget of `mixed`: maximum average bits per weight over all quantized matrices. Scales, zero
            points and padding count.
        widths: Bits of each matrix, by weight name. The conversion fills them in for `mixed`.
        scale_dtype: Stored dtype of scales: `float16` or `float32`.

    Raises:
        InputError: A value is unknown, or the budget is out of range.
    """

    type: str
    block_size: int | None = None
    asymmetric: bool = False
    rounding: str = "gptq"
    bits_per_weight: float | None = None
    widths: Mapping[str, int] | None = None
    scale_dtype: str = "float16"

    def __post_init__(self) -> None:
        if not self.mixed:
            one_of("--quantize", self.type, TYPES)
        if self.bits_per_weight is not None and not self.mixed:
            raise InputError("--bits-per-weight chooses the bits of each matrix; leave --quantize out")
        if self.block_size is not None:
            one_of("--block-size", self.block_size, BLOCK_SIZES)
        one_of("--rounding", self.rounding, ROUNDINGS)
        one_of("--scale-dtype", self.scale_dtype, SCALE_DTYPES)
        if self.bits_per_weight is not None:
            self.check_budget(*(bits_per_number(self.single(bits).layout) for bits in (BITS[0], BITS[-1])))

    @classmethod
    def of(
        cls,
        quantize: str | None,
        block_size: int | None = None,
        asymmetric: bool = False,
        rounding: str | None = None,
        bits_per_weight: float | None = None,
        scale_dtype: str | None = None,
    ) -> Self | None:
        """Return the quantization of these command-line options; None without `quantize` and `bits_per_weight`.

        Raises:
            InputError: A value is unknown, or an option is given without `quantize` and `bits_per_weight`.
        """
        if quantize is None and bits_per_weight is None:
            options = {
                "--block-size": block_size, "--asymmetric": asymmetric or None, "--rounding": rounding,
                "--scale-dtype": scale_dtype,
            }  # fmt: skip
            for option, value in options.items():
                if value is not None:
                    raise InputError(f"{option}: belongs to --quantize or --bits-per-weight; give one of them")
            return None
        return cls(
            quantize or MIXED, block_size, asymmetric, rounding or "gptq", bits_per_weight,
            scale_dtype=scale_dtype or "float16",
        )  # fmt: skip

    @property
    def mixed(self) -> bool:
        """Whether the width is chosen for each matrix."""
        return self.type == MIXED and self.bits_per_weight is not None

    def single(self, bits: int) -> Self:
        """Return a copy with one width for all matrices."""
        return replace(self, type=f"int{bits}", bits_per_weight=None, widths=None)

    def of_matrix(self, name: str) -> Self:
        """Return the quantization of one matrix, by its weight name."""
        if not self.mixed:
            return self
        assert self.widths is not None  # chosen before anything is stored
        return self.single(self.widths[name])

    def check_budget(self, least: float, most: float) -> None:
        """Check that the budget of `mixed` is within reach.

        Args:
            least: Bits per weight if all matrices are int3.
            most: Bits per weight if all matrices are int8.

        Raises:
            InputError: The budget is outside these limits.
        """
        assert self.bits_per_weight is not None
        if not least <= self.bits_per_weight <= most:
            narrow, wide = (self.single(bits).layout for bits in (BITS[0], BITS[-1]))
            least, most = math.ceil(1000 * least) / 1000, math.floor(1000 * most) / 1000  # accepted if given
            raise InputError(
                f"--bits-per-weight {self.bits_per_weight:g}: expected {least:g} (all int{narrow.bits}, blocks of "
                f"{narrow.block_size}) to {most:g} (all int{wide.bits}, blocks of {wide.block_size})"
            )

    @property
    def layout(self) -> Layout:
        """How the weights are stored; for `mixed`, the narrowest layout."""
        bits = min(BITS) if self.mixed else int(self.type.removeprefix("int"))
        return Layout(bits, self.block_size or _BLOCK_SIZES.get(bits, 64), not self.asymmetric, self.scale_dtype)

    @property
    def uses_statistics(self) -> bool:
        """Whether rounding needs the calibration text."""
        return self.rounding == "gptq"

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON, with the default block size filled in."""
        size = self.block_size if self.mixed else self.layout.block_size
        budget = {"bits_per_weight": self.bits_per_weight} if self.mixed else {}
        return {
            "type": self.type, "block_size": size, "asymmetric": self.asymmetric, "rounding": self.rounding,
            "scale_dtype": self.scale_dtype, **budget,
        }  # fmt: skip
