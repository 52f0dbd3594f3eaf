"""Products with a weight in float64, a part of its rows at a time: the weight is never widened as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

CHUNK = 4 * 2**20  # float64 numbers held at once, 32 MB: large enough for BLAS to run at full speed


def row_chunks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield slices of rows, each of about `CHUNK` numbers."""
    step = max(1, CHUNK // max(1, shape[1]))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


@dataclass(frozen=True)
class ChunkedMatrix:
    """A matrix `|W|∘a`, `W∘a` or W in float64, computed from a stored weight where it is needed.

    Attributes:
        weight: W, (m, n), any float dtype.
        absolute: Whether magnitudes are taken.
        scale: a, (n,), one factor for each column; None stands for ones.
    """

    weight: Tensor
    absolute: bool = False
    scale: Vector | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.weight.shape[0], self.weight.shape[1]

    def chunks(self) -> Iterator[tuple[slice, Matrix]]:
        """Yield slices of rows and these rows."""
        for rows in row_chunks(self.shape):
            part = self.weight[rows].to(torch.float64).numpy()
            if self.absolute:
                part = np.abs(part)
            yield rows, part if self.scale is None else part * self.scale

    def dense(self) -> Matrix:
        """Return the matrix, (m, n)."""
        return np.concatenate([part for _, part in self.chunks()])

    def single(self) -> NDArray[np.float32]:
        """Return the matrix rounded to float32, (m, n)."""
        found = np.empty(self.shape, np.float32)
        for rows, part in self.chunks():
            found[rows] = part
        return found

    def times(self, right: Matrix) -> Matrix:
        """Return the product with a matrix on the right, (n, k) to (m, k)."""
        found = np.empty((self.shape[0], right.shape[1]))
        for rows, part in self.chunks():
            found[rows] = part @ right
        return found

    def left_times(self, left: Matrix) -> Matrix:
        """Return the product with a matrix on the left, (k, m) to (k, n)."""
        found = np.zeros((left.shape[0], self.shape[1]))
        for rows, part in self.chunks():
            found += left[:, rows] @ part
        return found
