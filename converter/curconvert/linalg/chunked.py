"""Multiplies with a weight in float64, some rows at a time, so that memory never holds the whole float64 weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from curconvert.base.types import Matrix, Vector

CHUNK = 4 * 2**20  # float64 numbers held at once, 32 MB: large enough for BLAS to run at full speed


@dataclass(frozen=True)
class ChunkedMatrix:
    """Represents `|W|∘a`, `W∘a` or W in float64, computed from a stored weight when needed.

    Products are computed on the weight's device; arguments and results are in main memory.

    Attributes:
        weight: W, (m, n), any float dtype, on any device.
        absolute: Whether to take magnitudes.
        scale: a, (n,), one factor for each column; None means ones.
    """

    weight: Tensor
    absolute: bool = False
    scale: Vector | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.weight.shape[0], self.weight.shape[1]

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of rows and these rows in float64, on the weight's device."""
        scale = None if self.scale is None else torch.from_numpy(self.scale).to(self.weight.device)
        step = max(1, CHUNK // max(1, self.shape[1]))
        for start in range(0, self.shape[0], step):
            rows = slice(start, min(start + step, self.shape[0]))
            part = self.weight[rows].to(torch.float64)
            part = part.abs() if self.absolute else part
            yield rows, part if scale is None else part * scale

    def chunks(self) -> Iterator[tuple[slice, Matrix]]:
        """Yield slices of rows and these rows, in main memory."""
        for rows, part in self.parts():
            yield rows, part.cpu().numpy()

    def dense(self) -> Matrix:
        """Return the matrix, (m, n)."""
        return np.concatenate([part for _, part in self.chunks()])

    def single(self) -> Tensor:
        """Return the matrix computed in float32, (m, n), on the weight's device."""
        found = self.weight.to(torch.float32, copy=True)
        if self.absolute:
            found.abs_()
        if self.scale is not None:
            found *= torch.from_numpy(self.scale).to(found)
        return found

    def times(self, right: Matrix) -> Matrix:
        """Return the product with a matrix on the right, (n, k) to (m, k)."""
        placed = torch.from_numpy(right).to(self.weight.device)
        found = torch.empty((self.shape[0], right.shape[1]), dtype=torch.float64, device=self.weight.device)
        for rows, part in self.parts():
            found[rows] = product(part, placed)
        return found.cpu().numpy()

    def left_times(self, left: Matrix) -> Matrix:
        """Return the product with a matrix on the left, (k, m) to (k, n)."""
        placed = torch.from_numpy(left).to(self.weight.device)
        found = torch.zeros((left.shape[0], self.shape[1]), dtype=torch.float64, device=self.weight.device)
        for rows, part in self.parts():
            found += product(placed[:, rows], part)
        return found.cpu().numpy()


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return the product of two matrices, on their device; on the CPU by NumPy's BLAS.

    On some processors, torch's own BLAS (MKL) reaches only two thirds of the speed in float64.
    """
    if left.device.type == "cpu":
        return torch.from_numpy(left.numpy() @ right.numpy())
    return left @ right
