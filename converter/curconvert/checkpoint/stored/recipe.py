"""Defines how one weight is computed from stored tensors, and the arithmetic that all formats share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from curconvert.base.errors import InputError
from curconvert.checkpoint.safetensors_file import STORED
from curconvert.checkpoint.types import TensorInfo

Read = Callable[[str], torch.Tensor]
_AT_ONCE = 2**20  # elements; the intermediate values are float64


@dataclass(frozen=True)
class Recipe:
    """One weight that is computed when it is read.

    Attributes:
        shape: Shape of the weight.
        compute: Returns the weight in a dtype, from a function that reads stored tensors.
    """

    shape: tuple[int, ...]
    compute: Callable[[Read, torch.dtype], torch.Tensor]


@dataclass(frozen=True)
class Decoding:
    """What a quantization format says about the tensors of a checkpoint.

    Attributes:
        weights: The weights that are computed, by name.
        parts: Stored tensors that the recipes use; the model has no tensors of these names.
        dropped: Stored tensors that describe activations or the cache and are no weights.
    """

    weights: Mapping[str, Recipe]
    parts: Collection[str]
    dropped: Collection[str] = field(default_factory=tuple)


@dataclass(frozen=True)
class Stored:
    """The tensors of a quantized checkpoint.

    Attributes:
        tensors: Dtype and shape by stored name.
        read: Reads one of them.
        source: Name of the checkpoint in messages.
    """

    tensors: Mapping[str, TensorInfo]
    read: Read
    source: str

    def part(self, name: str, weight: str) -> TensorInfo:
        """Return a stored tensor that a weight needs.

        Raises:
            InputError: It is missing, or has a dtype that no such tensor has.
        """
        if name not in self.tensors:
            raise InputError(
                f"{self.source}: tensor {weight} is quantized, and tensor {name}, which it needs, is missing"
            )
        if (dtype := self.tensors[name].dtype) not in STORED:
            raise InputError(f"{self.source}: tensor {name} has dtype {dtype}, expected one of {', '.join(STORED)}")
        return self.tensors[name]

    def check_shape(self, info: TensorInfo, *expected: tuple[int, ...]) -> None:
        """Check that a stored tensor has one of the expected shapes.

        Raises:
            InputError: It has another shape.
        """
        if info.shape not in expected:
            wanted = " or ".join(str(list(shape)) for shape in dict.fromkeys(expected))
            raise InputError(f"{self.source}: tensor {info.name} is {list(info.shape)}, expected {wanted}")


Scheme = Callable[[Stored, Mapping[str, Any]], Decoding]
"""Takes the stored tensors and the `quantization_config`."""

_ACTIVATIONS = (
    ".input_scale", ".input_zero_point", ".input_global_scale", ".activation_scale", ".output_scale",
    ".output_zero_point", ".k_scale", ".v_scale", ".q_scale", ".kv_scale", ".k_zero_point", ".v_zero_point",
)  # fmt: skip


def of_activations(tensors: Collection[str]) -> list[str]:
    """Return the tensors that describe quantized activations or a quantized cache."""
    return [name for name in tensors if name.endswith(_ACTIVATIONS)]


def scaled(
    values: torch.Tensor,
    scale: torch.Tensor,
    block: tuple[int, int],
    dtype: torch.dtype,
    zero: torch.Tensor | None = None,
    groups: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return `(values − zero) · scale`, computed in float64 and rounded once.

    Args:
        values: (rows, columns), integers or floats of any width.
        scale: One number for each block of `values`.
        block: Rows and columns of a block.
        dtype: Dtype of the result.
        zero: Zero point of each block, or None.
        groups: Column of `scale` for each column of `values`, if that is not its number divided by the block's width.
    """
    rows, columns = values.shape
    across = torch.arange(columns) // block[1] if groups is None else groups.long()
    result = torch.empty((rows, columns), dtype=dtype)
    step = max(1, _AT_ONCE // max(columns, 1))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        down = torch.arange(start, stop) // block[0]
        part = values[start:stop].to(torch.float64)
        if zero is not None:
            part -= zero[down].to(torch.float64)[:, across]
        result[start:stop] = (part * scale[down].to(torch.float64)[:, across]).to(dtype)
    return result
