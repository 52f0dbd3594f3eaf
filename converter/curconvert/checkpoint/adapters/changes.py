"""Defines what an adapter does to one tensor of its base model.

Products and norms are computed in float64, a few rows at a time, and rounded once to the dtype of the base tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from curconvert.base.errors import InputError

Load = Callable[[], torch.Tensor]
_AT_ONCE = 2**20  # elements


class Change(Protocol):
    """A change of one tensor."""

    def shape_after(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return the shape that a tensor of `shape` has after the change; None if the change does not fit it."""
        ...

    def apply(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the changed tensor, in the dtype of `tensor`."""
        ...

    def rows(self, start: int, stop: int) -> Change:
        """Return the change of these rows, where the tensor is stored as a part of a fused one."""
        ...


@dataclass(frozen=True)
class LowRank:
    """Adds `scale · up · down` to a matrix; DoRA then gives each output the length in `magnitude`.

    Attributes:
        down: Loads A, (rank, inputs).
        up: Loads B, (outputs, rank).
        size: Outputs and inputs.
        scale: The factor.
        magnitude: Loads DoRA's lengths, one for each output; None for LoRA.
        transposed: Whether the base stores (inputs, outputs), as Conv1D and embeddings of tokens do.
        part: First row of B and end, for a part of a fused projection.
    """

    down: Load
    up: Load
    size: tuple[int, int]
    scale: float
    magnitude: Load | None = None
    transposed: bool = False
    part: tuple[int, int] | None = None

    def shape_after(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return `shape` if it is the matrix's."""
        return shape if shape == (self.size[::-1] if self.transposed else self.size) else None

    def apply(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the matrix with the product added."""
        down, up = self.down().to(torch.float64), self._rows_of(self.up())
        lengths = None if self.magnitude is None else self._rows_of(self.magnitude().flatten())
        result = torch.empty_like(tensor)
        before, after = (tensor.T, result.T) if self.transposed else (tensor, result)
        step = max(1, _AT_ONCE // max(before.shape[1], 1))
        for start in range(0, len(before), step):
            rows = slice(start, start + step)
            merged = before[rows].to(torch.float64) + self.scale * (up[rows] @ down)
            if lengths is not None:
                merged *= (lengths[rows] / merged.norm(dim=1)).unsqueeze(1)
            after[rows] = merged.to(tensor.dtype)
        return result

    def rows(self, start: int, stop: int) -> LowRank:
        """Return the change of these rows."""
        return replace(self, size=(stop - start, self.size[1]), part=(start, stop))

    def _rows_of(self, tensor: torch.Tensor) -> torch.Tensor:
        part = tensor if self.part is None else tensor[slice(*self.part)]
        return part.to(torch.float64)


@dataclass(frozen=True)
class Replacement:
    """Puts a trained tensor in the place of the base's; an embedding may have more or fewer rows than before.

    Attributes:
        load: Loads it.
        shape: Its shape.
        part: First row and end, for a part of a fused projection.
    """

    load: Load
    shape: tuple[int, ...]
    part: tuple[int, int] | None = None

    def shape_after(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return the trained tensor's shape, if only the number of rows of a matrix differs."""
        fits = self.shape == shape or (len(shape) == 2 and self.part is None and self.shape[1:] == shape[1:])
        return self.shape if fits else None

    def apply(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the trained tensor."""
        trained = self.load()
        return (trained if self.part is None else trained[slice(*self.part)]).to(tensor.dtype)

    def equals(self, other: Replacement) -> bool:
        """Tell whether the other one has the same values."""
        return self.shape == other.shape and torch.equal(self.load(), other.load())

    def rows(self, start: int, stop: int) -> Replacement:
        """Return the change of these rows."""
        return replace(self, shape=(stop - start, *self.shape[1:]), part=(start, stop))


@dataclass(frozen=True)
class Rows:
    """Puts trained rows in the place of some rows of an embedding.

    Attributes:
        load: Loads them.
        shape: Their shape.
        indices: The row of the embedding for each of them.
    """

    load: Load
    shape: tuple[int, ...]
    indices: Sequence[int]

    def shape_after(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return `shape` if it has these rows."""
        fits = len(shape) == 2 and self.shape == (len(self.indices), shape[1])
        return shape if fits and all(0 <= index < shape[0] for index in self.indices) else None

    def apply(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the embedding with the trained rows."""
        return tensor.index_copy(0, torch.tensor(self.indices), self.load().to(tensor.dtype))

    def rows(self, start: int, stop: int) -> Rows:
        """Embeddings are never fused."""
        raise InputError(f"trained tokens in the rows {start} to {stop} of a fused projection")


@dataclass(frozen=True)
class Offset:
    """Adds a trained vector to a bias.

    Attributes:
        load: Loads it.
        shape: Its shape.
        scale: The factor.
        part: First element and end, for a part of a fused projection.
    """

    load: Load
    shape: tuple[int, ...]
    scale: float
    part: tuple[int, int] | None = None

    def shape_after(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """Return `shape` if it is the vector's."""
        return shape if shape == self.shape else None

    def apply(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the bias with the vector added."""
        vector = self.load() if self.part is None else self.load()[slice(*self.part)]
        return (tensor.to(torch.float64) + self.scale * vector.to(torch.float64)).to(tensor.dtype)

    def rows(self, start: int, stop: int) -> Offset:
        """Return the change of these elements."""
        return replace(self, shape=(stop - start,), part=(start, stop))


def scale_of(alpha: float, rank: float, *, stabilized: bool) -> float:
    """Return the factor of a low-rank product; rank-stabilized LoRA divides by the root of the rank."""
    return alpha / (math.sqrt(rank) if stabilized else rank)
