"""Holds the first and second moments of a linear's input, and computes with them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from curconvert.base.types import Matrix, Vector
from curconvert.linalg.chunked import CHUNK, ChunkedMatrix

_CONSTANT = 1e-12  # a variance below this share of the second moment is a rounding error, in float64


@dataclass(frozen=True)
class Drift:
    """Holds the moments of the differences between a compressed model's inputs x̂ and the original's x.

    They are summed from each token's difference, so that small differences do not cancel.

    Attributes:
        cross: `Δ = E[(x − x̂) x̂ᵀ]`, (in_features, in_features) float64.
        mean: `δ = E[x − x̂]`, (in_features,) float64.
    """

    cross: Matrix
    mean: Vector


@dataclass(frozen=True)
class InputStatistics:
    """Holds the statistics of a linear's input over the calibration tokens.

    It stores the Gram matrix, or the inputs if they are smaller. T inputs of n features take T·n numbers instead of n²,
    and products with the Gram matrix are computed from them.

    Attributes:
        second_moment: `E[x xᵀ]` over the calibration tokens, uncentered, (in_features, in_features) float64; None if
            `samples` replace it.
        tokens: Number of tokens averaged over.
        mean: `μ = E[x]`, (in_features,) float64.
        held_out: Statistics of a part of these tokens, for choosing settings; None if no part was held out.
        samples: Every input, (tokens, in_features) float32; None if there is a second moment.
        drift: From the original's inputs; None if these are the original's, or were not compared with them.
    """

    second_moment: Matrix | None
    tokens: int
    mean: Vector
    held_out: InputStatistics | None = None
    samples: NDArray[np.float32] | None = None
    drift: Drift | None = None

    @cached_property
    def gram(self) -> Matrix:
        """`H = E[x xᵀ]`, (in_features, in_features) float64; computed from the samples on first use if needed."""
        if self.second_moment is not None:
            return self.second_moment
        total = np.zeros((len(self.mean), len(self.mean)))
        for _, part in self._inputs.chunks():
            total += part.T @ part
        return total / self.tokens

    @property
    def rest(self) -> InputStatistics:
        """Statistics of the tokens that are not held out."""
        part = self.held_out
        if part is None:
            return self
        tokens, drift = self.tokens - part.tokens, None

        def without(whole: Matrix, held_out: Matrix) -> Matrix:
            return (self.tokens * whole - part.tokens * held_out) / tokens

        if self.drift is not None and part.drift is not None:
            drift = Drift(without(self.drift.cross, part.drift.cross), without(self.drift.mean, part.drift.mean))
        return InputStatistics(without(self.gram, part.gram), tokens, without(self.mean, part.mean), drift=drift)

    @cached_property
    def diagonal(self) -> Vector:
        """Mean square of each input feature, (in_features,): the diagonal of H."""
        if self.second_moment is not None:
            return np.diag(self.second_moment)
        total = np.zeros(len(self.mean))
        for _, part in self._inputs.chunks():
            total += np.einsum("ij,ij->j", part, part)
        return total / self.tokens

    @property
    def rms(self) -> Vector:
        """Root mean square of each input feature, (in_features,)."""
        return np.sqrt(self.diagonal)

    @property
    def finite(self) -> bool:
        """Whether no input overflowed."""
        found = [self.gram if self.samples is None else self.samples, *([self.drift.cross] if self.drift else [])]
        return all(bool(np.isfinite(part).all()) for part in found)

    @property
    def centered(self) -> InputStatistics:
        """Statistics of `x − μ`: second moment `H − μμᵀ`, mean zero. A constant feature gets exact zeros.

        The drift is centered as well: `Δ − δμᵀ`.
        """
        gram = self.gram - np.outer(self.mean, self.mean)
        constant = np.diag(gram) <= _CONSTANT * np.diag(self.gram)
        gram[constant, :] = gram[:, constant] = 0.0
        drift = self.drift
        if drift is not None:
            cross = drift.cross - np.outer(drift.mean, self.mean)
            cross[:, constant] = 0.0
            drift = Drift(cross, np.zeros_like(self.mean))
        return InputStatistics(gram, self.tokens, np.zeros_like(self.mean), drift=drift)

    def times(self, matrix: Matrix) -> Matrix:
        """Return `H M`.

        Args:
            matrix: M, (in_features, k) float64.
        """
        if self.second_moment is not None:
            return np.asarray(self.second_moment @ matrix)
        found = np.zeros_like(matrix)
        for _, part in self._inputs.chunks():
            found += part.T @ (part @ matrix)
        return found / self.tokens

    def images(self, matrix: Matrix) -> NDArray[np.float32]:
        """Return the large product that `energy` needs: `M H`, or `M Xᵀ / √T` if there are samples X, (k, any).

        It is linear in M. It is float32: the sums are only reported, and a relative error of 1e-6 is small enough.

        Args:
            matrix: M, (k, in_features) float64.
        """
        if self.samples is None:
            single, gram = matrix.astype(np.float32), self.gram
            found = np.empty(matrix.shape, np.float32)
            step = max(1, CHUNK // len(gram))  # avoids a copy of the whole Gram matrix of a wide layer
            for start in range(0, len(gram), step):
                part = slice(start, start + step)
                found[:, part] = single @ gram[:, part].astype(np.float32)
            return found
        return np.asarray((matrix / np.sqrt(self.tokens)).astype(np.float32) @ self.samples.T)

    def energy(self, matrix: Matrix, images: NDArray[np.float32] | None = None) -> float:
        """Return `E‖M x‖² = tr(M H Mᵀ)`.

        Args:
            matrix: M, (k, in_features) float64.
            images: `images(matrix)`, if already computed.
        """
        found = self.images(matrix) if images is None else images
        return (
            squares(found) if self.samples is not None else max(float(np.vdot(found.astype(np.float64), matrix)), 0.0)
        )

    def mixed(self, weights: Matrix) -> Matrix:
        """Return sums of inputs, `Xᵀ M`, (in_features, k); needs samples.

        Args:
            weights: M, (tokens, k) float64.
        """
        return self._inputs.left_times(weights.T).T

    @property
    def _inputs(self) -> ChunkedMatrix:
        assert self.samples is not None
        return ChunkedMatrix(torch.from_numpy(self.samples))


def squares(matrix: NDArray[np.floating[Any]]) -> float:
    """Return the sum of the squares of a matrix, in float64."""
    return float(np.einsum("ij,ij->", matrix, matrix, dtype=np.float64))
