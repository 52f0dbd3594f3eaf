"""Factorizes two layers' matrices on one basis: `Ŵ₁ = A₁ B`, `Ŵ₂ = A₂ B` (Basis Sharing, arXiv 2410.03765).

B is stored once, so r(n + m₁ + m₂ − r) numbers in interpolative form allow a higher rank than two bases would.

Each matrix has its own metric, `½ tr(F ΔW H ΔWᵀ)` (`two_sided`). The stacked matrix has a best basis only if both share
one H. So H̄ is the mean of both H, each divided by its trace t, and F is multiplied by t, which changes no cost. With
H̄, a truncated SVD of `[(t₁F₁)^½ W₁; (t₂F₂)^½ W₂] H̄^½` is best (Eckart–Young). As `H/t ≤ 2 H̄`, both matrices together
cost at most `Σ_{j>r} σ_j²` in their own metrics.
From there, alternating steps improve the left factors and the basis, each optimal for the other in the matrices' own
metrics. No step raises the cost. The decision to share uses the cost after the first half-step
(`Metric.costs_within`), which is known for all ranks at once. It is at most that bound, and at least the cost of the
final factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch

from curconvert.base.types import Indices, Matrix, Vector
from curconvert.factorization.interpolative import spanning_rows
from curconvert.factorization.measured import deployed, measured
from curconvert.factorization.projection import Projection
from curconvert.factorization.two_sided import DAMPING, damped, two_sided
from curconvert.factorization.types import Factorization
from curconvert.linalg.gram import ridged, solve_right

_NEGLIGIBLE = 1e-13  # relative to the largest value: smaller ones count as rounding errors
_TINY = float(np.finfo(np.float64).tiny)
# Curvature added to H, and the least curvature of a step. Directions with almost no input get steps that are too short
# rather than huge, so the basis does not diverge in them.
_FLOOR, _FLAT = 1e-9, 1e-6
_STEPS = 3  # on SmolLM2 the first step saves 1/20 of the cost, the third 1/500


@dataclass(frozen=True)
class Metric:
    """Holds one matrix with the two metrics that give the cost of its errors.

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
        """Return the metric of a linear, with ridge and damping added.

        Args:
            projection: The linear.
            fisher: Second moment of the gradient at its output, (m, m).
            ridge: λ of `H + λ diag(H)`.
        """
        weight = projection.weight.to(torch.float64).numpy()
        return cls(weight, ridged(projection.metric.gram, ridge), damped(fisher, DAMPING))

    def scaled(self, trace: float) -> Metric:
        """Return the same costs with `H / trace` and `F · trace`."""
        return Metric(self.weight, self.gram / trace, self.fisher * trace)

    def best_costs(self) -> Vector:
        """Return the cost of the best separate approximation of each rank, (m + 1,), rank 0 first."""
        right = two_sided(self.weight, self.gram, self.fisher).right
        return 0.5 * np.append(np.cumsum(np.einsum("ij,ij->i", right @ self.gram, right)[::-1])[::-1], 0.0)

    def costs_within(self, basis: Matrix) -> Vector:
        """Return, for each r, the least cost of an approximation whose rows are combinations of a basis's first r rows.

        Args:
            basis: B, (k, n).

        Returns:
            (k + 1,), rank 0 first.
        """
        weighted = self.gram @ basis.T
        inner = basis @ weighted
        smallest = max(_NEGLIGIBLE * float(inner.diagonal().max()), _TINY)
        # The leading block of a Cholesky factor is the factor of the leading block: one factor serves all ranks.
        factor = scipy.linalg.cholesky(inner + smallest * np.eye(len(inner)), lower=True, check_finite=False)
        part = scipy.linalg.solve_triangular(factor, (self.weight @ weighted).T, lower=True, check_finite=False)
        saved = np.cumsum(np.einsum("ij,ij->i", part @ self.fisher, part))
        whole = float(np.einsum("ij,ij->", self.fisher @ self.weight @ self.gram, self.weight))
        return 0.5 * np.maximum(whole - np.append(0.0, saved), 0.0)

    def onto(self, basis: Matrix) -> Matrix:
        """Return the A, (m, r), for which A·B has the least cost, for any F; B is (r, n)."""
        weighted = self.gram @ basis.T
        return solve_right(self.weight @ weighted, basis @ weighted)


@dataclass(frozen=True)
class SharedBasis:
    """Holds the common bases of two matrices for all ranks.

    Attributes:
        metrics: The matrices, both with n columns and `tr H = 1`.
        rows: (M, n), M the rows of both matrices together; the first r rows are the initial basis for rank r.
    """

    metrics: tuple[Metric, Metric]
    rows: Matrix

    def factors(self, rank: int) -> tuple[Matrix, Matrix]:
        """Return (A, B) of the stacked matrices: A (M, r) with orthonormal columns, B (r, n)."""
        pencil = _Pencil.of(*(metric.gram for metric in self.metrics))
        A, B = self._onto(self.rows[:rank])
        for _ in range(_STEPS):
            A, B = self._onto(best_basis(self.metrics, A, B, pencil))
        return A, B

    def _onto(self, basis: Matrix) -> tuple[Matrix, Matrix]:
        left = np.concatenate([metric.onto(basis) for metric in self.metrics])
        orthonormal, triangle = scipy.linalg.qr(left, mode="economic", check_finite=False)
        return np.asarray(orthonormal), np.asarray(triangle @ basis)


@dataclass(frozen=True)
class _Pencil:
    """Holds coordinates in which two symmetric positive semi-definite matrices P and Q are both diagonal.

    Attributes:
        vectors: V with `Vᵀ(P + Q)V = I`.
        first: Diagonal of `VᵀPV`, from 0 to 1; the diagonal of `VᵀQV` is one minus it.
    """

    vectors: Matrix
    first: Vector

    @classmethod
    def of(cls, P: Matrix, Q: Matrix) -> _Pencil:
        both = P + Q
        both = both + max(_FLOOR * float(both.diagonal().max()), _TINY) * np.eye(len(both))
        values, vectors = scipy.linalg.eigh(P, both, check_finite=False)
        return cls(vectors, np.clip(values, 0.0, 1.0))


def best_basis(metrics: tuple[Metric, Metric], A: Matrix, B: Matrix, grams: _Pencil) -> Matrix:
    """Return the B of the least cost for given left factors.

    B solves `Σ AᵢᵀFᵢAᵢ B Hᵢ = Σ AᵢᵀFᵢWᵢHᵢ`. In coordinates where both Hᵢ and both AᵢᵀFᵢAᵢ are diagonal, it is solved
    element by element. It is solved for the change of B, so that B stays unchanged in directions without input.

    Args:
        metrics: The matrices.
        A: (M, r), both left factors, stacked.
        B: (r, n), the present basis.
        grams: Coordinates in which both Hᵢ are diagonal.
    """
    lefts = np.split(A, [len(metrics[0].weight)])
    pairs = list(zip(metrics, lefts, strict=True))
    left = _Pencil.of(*(part.T @ metric.fisher @ part for metric, part in pairs))
    missing = sum(part.T @ metric.fisher @ (metric.weight - part @ B) @ metric.gram for metric, part in pairs)
    curvature = np.outer(left.first, grams.first) + np.outer(1 - left.first, 1 - grams.first)
    step = (left.vectors.T @ missing @ grams.vectors) / np.maximum(curvature, _FLAT)
    return np.asarray(B + left.vectors @ step @ grams.vectors.T)


def shared_basis(first: Metric, second: Metric) -> SharedBasis:
    """Return the common bases of two matrices with the same number of columns."""
    traces = [float(np.trace(metric.gram)) for metric in (first, second)]
    least = _NEGLIGIBLE * max(traces) or 1.0  # 1.0 if no input is ever nonzero
    one, two = (metric.scaled(max(trace, least)) for metric, trace in zip((first, second), traces, strict=True))
    mean = (one.gram + two.gram) / 2
    fisher = scipy.linalg.block_diag(one.fisher, two.fisher)
    return SharedBasis((one, two), two_sided(np.concatenate([one.weight, two.weight]), mean, fisher).right)


def shared_pivots(basis: SharedBasis, rank: int) -> tuple[list[Indices], Matrix, Matrix]:
    """Choose the rows of a common R.

    Args:
        basis: Basis of the matrices.
        rank: r.

    Returns:
        For each matrix the indices of its rows in R; R, (r, n), with the first matrix's rows first; T, (M − r, r), for
        all other rows, ascending.
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
    """Factorize linears of two layers with one R.

    Args:
        projections: Both linears, with n inputs each.
        fishers: Second moment of the gradient at each one's output, (m, m).
        rank: r, at which each matrix has rows in R and rows outside.
        ridge: λ of `H + λ diag(H)`.
        dtype: Deployed dtype of R and T.

    Returns:
        One interpolative factorization for each linear; both hold the same R.
    """
    metrics = [Metric.of(*pair, ridge) for pair in zip(projections, fishers, strict=True)]
    rows, R, T = shared_pivots(shared_basis(*metrics), rank)
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
        found.append(measured("interpolative", tensors, rank, projection.weight, projection.metric, basis="subspace"))
        row, place = row + len(others), place + len(own)
    return found
