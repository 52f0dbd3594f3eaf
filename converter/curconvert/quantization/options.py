"""What a user asks for when matrices shall be quantised."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from curconvert.errors import InputError
from curconvert_runtime.quantized import BITS, BLOCK_SIZES, Layout

TYPES = tuple(f"int{bits}" for bits in BITS)
ROUNDINGS = ("nearest", "gptq")
_BLOCK_SIZES = {4: 64, 8: 32}


def stored_bytes(dtype: torch.dtype, quantization: Quantization | None) -> float:
    """Return the bytes of a stored number: of the deployed dtype, or of a quantised matrix."""
    return dtype.itemsize if quantization is None else quantization.layout.bits_per_number / 8


@dataclass(frozen=True)
class Quantization:
    """How stored matrices are quantised.

    Attributes:
        type: `int4` or `int8`.
        block_size: Columns that share a scale; None is 64 for `int4` and 32 for `int8`.
        asymmetric: Whether each block has a zero point.
        rounding: `nearest`, or `gptq` for the least error of the outputs on the calibration text.
    """

    type: str
    block_size: int | None = None
    asymmetric: bool = False
    rounding: str = "gptq"

    def __post_init__(self) -> None:
        if self.type not in TYPES:
            raise InputError(f"--quantize {self.type!r}: expected one of {', '.join(TYPES)}")
        if self.block_size is not None and self.block_size not in BLOCK_SIZES:
            sizes = ", ".join(map(str, BLOCK_SIZES))
            raise InputError(f"--block-size {self.block_size}: expected one of {sizes}")
        if self.rounding not in ROUNDINGS:
            raise InputError(f"--rounding {self.rounding!r}: expected one of {', '.join(ROUNDINGS)}")

    @classmethod
    def of(
        cls,
        quantize: str | None,
        block_size: int | None = None,
        asymmetric: bool = False,
        rounding: str | None = None,
    ) -> Quantization | None:
        """Return what command-line options ask for, None where nothing shall be quantised.

        Raises:
            InputError: A value is not one of its option's, or stands there without `--quantize`.
        """
        if quantize is None:
            given = {"--block-size": block_size, "--asymmetric": asymmetric or None, "--rounding": rounding}
            for option, value in given.items():
                if value is not None:
                    raise InputError(f"{option}: belongs to --quantize, which is not given")
            return None
        chosen = cls(quantize, block_size, asymmetric)
        return chosen if rounding is None else replace(chosen, rounding=rounding)

    @property
    def layout(self) -> Layout:
        """How the numbers are stored."""
        bits = int(self.type.removeprefix("int"))
        return Layout(bits, self.block_size or _BLOCK_SIZES[bits], not self.asymmetric)

    @property
    def uses_statistics(self) -> bool:
        """Whether rounding looks at the inputs of the calibration text."""
        return self.rounding == "gptq"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON, the default block size filled in."""
        return {
            "type": self.type, "block_size": self.layout.block_size, "asymmetric": self.asymmetric,
            "rounding": self.rounding,
        }  # fmt: skip
