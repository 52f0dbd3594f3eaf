"""Two layers' matrices W₁, W₂ of one kind on one basis: `Ŵ₁ = A₁ B`, `Ŵ₂ = A₂ B` (Basis Sharing, arXiv 2410.03765).

B is stored once, so r(n + m₁ + m₂ − r) numbers in interpolative form hold a higher rank than two bases would.

The basis. Each matrix has its own metric, `½ tr(F ΔW H ΔWᵀ)` (`two_sided`); only with a common H would the stacked
matrix have a best basis. H̄ is the mean of both H, each divided by its trace t, and F takes t over, which changes no
cost. In that metric a truncated SVD of `[(t₁F₁)^½ W₁; (t₂F₂)^½ W₂] H̄^½` is best (Eckart–Young), and as `H/t ≤ 2 H̄`
both matrices together cost no more than `Σ_{j>r} σ_j²` in their own metrics: `SharedBasis.bound`.
The left factors are then the best ones for that basis in each own metric, which only lowers the cost; it is known
exactly too (`SharedBasis.costs`), and is what sharing is decided by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray

from curconvert.factorization.gram import deployed, measured, ridged, solve_right
from curconvert.factorization.interpolative import spanning_rows
from curconvert.factorization.projection import Projection
from curconvert.factorization.two_sided import DAMPING, damped, two_sided
from curconvert.factorization.types import Factorization

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]
_NEGLIGIBLE = 1e-13  # of a basis's strongest row: weaker ones need not be told from rounding


@dataclass(frozen=True)
class Metric:
    """One matrix and what its errors cost.

    Attributes:
        weight: W, (m, n).
        gram: H, (n, n) symmetric positive semi-definite.
        fisher: F, (m, m) symmetric positive definite.
    """

    weight: Matrix
    gram: Matrix
    fisher: Matrix

    @classmethod
    def of(cls, projection: Projection, fisher: Matrix, ridge: float) -> Metric:
        """Prepare a linear.

        Args:
            projection: The linear.
            fisher: Second moment of the gradient at its output, (m, m).
            ridge: λ of `H + λ diag(H)`.
        """
        weight = projection.weight.to(torch.float64).numpy()
        return cls(weight, ridged(projection.metric.gram, ridge), damped(fisher, DAMPING))

    def best_costs(self) -> Vector:
        """Return the cost of the best matrix of each rank by itself, (m + 1,), rank 0 first."""
        right = two_sided(self.weight, self.gram, self.fisher).right
        return 0.5 * np.append(np.cumsum(np.einsum("ij,ij->i", right @ self.gram, right)[::-1])[::-1], 0.0)

    def costs_within(self, basis: Matrix) -> Vector:
        """Return the least cost of a matrix whose rows lie in the span of a basis's first r rows, for each r.

        Args:
            basis: B, (k, n).

        Returns:
            (k + 1,), rank 0 first.
        """
        weighted = self.gram @ basis.T
        inner = basis @ weighted
        smallest = max(_NEGLIGIBLE * float(inner.diagonal().max()), np.finfo(np.float64).tiny)
        # A leading part of a Cholesky factor is that of the leading part: one serves all ranks.
        factor = scipy.linalg.cholesky(inner + smallest * np.eye(len(inner)), lower=True, check_finite=False)
        part = scipy.linalg.solve_triangular(factor, (self.weight @ weighted).T, lower=True, check_finite=False)
        saved = np.cumsum(np.einsum("ij,ij->i", part @ self.fisher, part))
        whole = float(np.einsum("ij,ij->", self.fisher @ self.weight @ self.gram, self.weight))
        return 0.5 * np.maximum(whole - np.append(0.0, saved), 0.0)

    def onto(self, basis: Matrix) -> Matrix:
        """Return A, (m, r), of the least cost of A·B, whatever F is; B is (r, n)."""
        weighted = self.gram @ basis.T
        return solve_right(self.weight @ weighted, basis @ weighted)


@dataclass(frozen=True)
class SharedBasis:
    """All common bases of some matrices, the leading rows of one.

    Attributes:
        metrics: The matrices, of one width n.
        rows: (M, n), M their number of rows together, leading first.
        energies: σ² of each row, (M,), in the common metric.
    """

    metrics: Sequence[Metric]
    rows: Matrix
    energies: Vector

    def bound(self, rank: int) -> float:
        """Return what all matrices together cost at most."""
        return 0.5 * len(self.metrics) * float(self.energies[rank:].sum())

    def factors(self, rank: int) -> tuple[Matrix, Matrix]:
        """Return (A, B) of the matrices on top of each other: A (M, r) with orthonormal columns, B (r, n)."""
        left = np.concatenate([metric.onto(self.rows[:rank]) for metric in self.metrics])
        basis, triangle = scipy.linalg.qr(left, mode="economic", check_finite=False)
        return np.asarray(basis), np.asarray(triangle @ self.rows[:rank])


def shared_basis(metrics: Sequence[Metric]) -> SharedBasis:
    """Find the common bases of matrices of one width."""
    found = [float(np.trace(metric.gram)) for metric in metrics]
    least = _NEGLIGIBLE * max(found) or 1.0  # of a layer without inputs, on which nothing depends
    traces = [max(trace, least) for trace in found]
    mean = np.mean([metric.gram / trace for metric, trace in zip(metrics, traces, strict=True)], axis=0)
    fisher = scipy.linalg.block_diag(*(metric.fisher * trace for metric, trace in zip(metrics, traces, strict=True)))
    rows = two_sided(np.concatenate([metric.weight for metric in metrics]), mean, fisher).right
    return SharedBasis(metrics, rows, np.einsum("ij,ij->i", rows @ mean, rows))


def shared_pivots(basis: SharedBasis, rank: int) -> tuple[list[NDArray[np.int32]], Matrix, Matrix]:
    """Choose the rows that a common R consists of.

    Args:
        basis: Of the matrices.
        rank: r.

    Returns:
        For each matrix its own rows that are in R, which lie there one matrix after the other; R, (r, n); T for all
        other rows, (M − r, r), ascending.
    """
    A, B = basis.factors(rank)
    pivots, T = spanning_rows(A)
    ends = np.cumsum([len(metric.weight) for metric in basis.metrics])
    owner = np.searchsorted(ends, pivots, side="right")
    order = np.argsort(owner, kind="stable")
    pivots, owner, T = pivots[order], owner[order], T[:, order]
    starts = np.append(0, ends)
    rows = [(pivots[owner == index] - starts[index]).astype(np.int32) for index in range(len(ends))]
    return rows, A[pivots] @ B, T


def factorize_shared(
    projections: Sequence[Projection], fishers: Sequence[Matrix], rank: int, ridge: float, dtype: torch.dtype
) -> list[Factorization]:
    """Factorize linears of several layers with one R.

    Args:
        projections: The linears, of one input width n.
        fishers: Second moment of the gradient at each one's output, (m, m).
        rank: r, so that each matrix has rows in R, and others.
        ridge: λ of `H + λ diag(H)`.
        dtype: Deployed dtype of R and T.

    Returns:
        One interpolative factorization each; all hold the same R.
    """
    metrics = [Metric.of(*pair, ridge) for pair in zip(projections, fishers, strict=True)]
    rows, R, T = shared_pivots(shared_basis(metrics), rank)
    kept, found, row, place = deployed(R, dtype), [], 0, 0
    for own, metric, projection in zip(rows, metrics, projections, strict=True):
        m = len(metric.weight)
        others = np.setdiff1d(np.arange(m), own)
        order = np.empty(m, dtype=np.int32)
        order[own], order[others] = np.arange(place, place + len(own)), np.arange(rank, rank + len(others))
        tensors = {
            "R": kept,
            "T": deployed(T[row : row + len(others)], dtype),
            "rows": torch.from_numpy(own),
            "order": torch.from_numpy(order),
        }
        found.append(measured("interpolative", tensors, rank, metric.weight, projection.metric, basis="subspace"))
        row, place = row + len(others), place + len(own)
    return found
