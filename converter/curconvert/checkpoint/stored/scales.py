"""Builds recipes for weights with scales: one for the tensor, for each row, for each group of a row, or each block."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch

from curconvert.base.errors import InputError
from curconvert.checkpoint.stored.packing import e8m0
from curconvert.checkpoint.stored.recipe import Read, Recipe, Stored, scaled
from curconvert.checkpoint.types import TensorInfo

Load = Callable[[Read], torch.Tensor]


@dataclass(frozen=True)
class Scaled:
    """A stored matrix and its scales.

    Attributes:
        values: Loads the numbers that the scales multiply, (rows, columns).
        scale: Loads the scales, a matrix with one number for each block.
        block: Rows and columns of a block.
        zero: Loads the zero points, which have the shape of the scales; or None.
        groups: Loads the column of `scale` for each column; None if blocks lie side by side.
    """

    values: Load
    scale: Load
    block: tuple[int, int]
    zero: Load | None = None
    groups: Load | None = None

    def recipe(self, shape: tuple[int, ...]) -> Recipe:
        """Return how the weight is computed."""
        return Recipe(shape, self._compute)

    def _compute(self, read: Read, dtype: torch.dtype) -> torch.Tensor:
        zero = None if self.zero is None else self.zero(read)
        groups = None if self.groups is None else self.groups(read)
        return scaled(self.values(read), self.scale(read), self.block, dtype, zero, groups)


def block_of(
    stored: Stored, scale: TensorInfo, shape: tuple[int, int], blocks: Iterable[tuple[int, int]]
) -> tuple[int, int]:
    """Return the rows and columns that share a scale, which follow from the shape of the scales.

    Args:
        stored: The checkpoint.
        scale: The scales: one for the tensor, one for each row, or one for each block.
        shape: Rows and columns of the weight.
        blocks: Rows and columns of the blocks that the checkpoint has, besides whole tensors and rows.

    Raises:
        InputError: The scales have another shape, or two kinds of blocks give this shape.
    """
    rows, columns = shape
    grids = {grid: {shape} for grid in [(), (1,), (1, 1)]}
    for grid in [(rows,), (rows, 1)]:
        grids.setdefault(grid, set()).add((1, columns))
    for down, across in blocks:
        block = min(down, rows), min(across, columns)
        grids.setdefault((-(-rows // down), -(-columns // across)), set()).add(block)
    stored.check_shape(scale, *grids)
    found = grids[scale.shape]
    if len(found) > 1:
        raise InputError(
            f"{stored.source}: tensor {scale.name} is {list(scale.shape)}, which fits blocks of "
            f"{' and of '.join(f'{down} x {across}' for down, across in sorted(found))}"
        )
    return found.pop()


def loads(name: str) -> Load:
    """Return a function that reads a tensor as it is."""
    return lambda read: read(name)


def loads_grid(name: str) -> Load:
    """Return a function that reads a tensor as a matrix: one number for all, or one for each row, is a column."""
    return lambda read: _as_grid(read(name))


def loads_scale(scale: TensorInfo) -> Load:
    """Return a function that reads scales as a matrix of float64."""
    return partial(_scale, scale)


def _scale(scale: TensorInfo, read: Read) -> torch.Tensor:
    values = read(scale.name)
    # Bytes are E8M0 scales too, from programs whose safetensors had no such type.
    return _as_grid(e8m0(values) if scale.dtype in ("F8_E8M0", "U8") else values.to(torch.float64))


def _as_grid(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, 1) if values.ndim < 2 else values
