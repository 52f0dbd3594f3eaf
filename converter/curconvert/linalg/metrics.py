"""Metrics for which factors are optimized, given by their products, so that no Gram matrix is needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from curconvert.base.types import Matrix, Vector
from curconvert.linalg.gram import ridged, square_root
from curconvert.linalg.statistics import InputStatistics


@dataclass(frozen=True)
class FullMetric:
    """Represents `H + λ diag(H)`, H the Gram matrix of a linear's input.

    Attributes:
        statistics: Statistics of the input.
        ridge: λ.
    """

    statistics: InputStatistics
    ridge: float

    def times(self, matrix: Matrix) -> Matrix:
        """Return the product with M, (n, k)."""
        return self.statistics.times(matrix) + self.ridge * self.statistics.diagonal[:, None] * matrix

    def dense(self) -> Matrix:
        """Return the matrix itself, (n, n)."""
        return ridged(self.statistics.gram, self.ridge)

    def sketch(self, size: int, rng: np.random.Generator) -> Matrix:
        """Return `S Ω` with `H + λ diag(H) = S Sᵀ` and Ω Gaussian, (n, size)."""
        samples, scale = self.statistics.samples, np.sqrt(self.statistics.diagonal)
        if samples is None:
            return self._root(scale) @ rng.standard_normal((len(scale), size))
        # S is [Xᵀ/√T, √λ D]: its two parts multiply two independent parts of Ω.
        drawn = rng.standard_normal((len(samples), size))
        own = np.sqrt(self.ridge) * scale[:, None] * rng.standard_normal((len(scale), size))
        return np.asarray(self.statistics.mixed(drawn) / np.sqrt(len(samples)) + own)

    def _root(self, scale: Vector) -> Matrix:
        alive = scale > 0
        safe = np.where(alive, scale, 1.0)
        scaled = self.dense() / np.outer(safe, safe)
        np.fill_diagonal(scaled, np.where(alive, np.diag(scaled), 1.0))
        try:
            return np.asarray(scale[:, None] * scipy.linalg.cholesky(scaled, lower=True, check_finite=False))
        except np.linalg.LinAlgError:  # without a ridge, if there are fewer tokens than features or dependent features
            return square_root(self.dense())


@dataclass(frozen=True)
class DiagonalMetric:
    """Represents `diag(H)`: each input feature on its own.

    Attributes:
        statistics: Statistics of the input.
    """

    statistics: InputStatistics

    def times(self, matrix: Matrix) -> Matrix:
        """Return the product with M, (n, k)."""
        return np.asarray(self.statistics.diagonal[:, None] * matrix)
