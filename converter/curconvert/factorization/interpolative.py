"""Factorizes W ≈ [R; T·R] up to the order of rows: R computes r outputs, and T interpolates the others from them."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from curconvert.base.types import Indices, Matrix
from curconvert.factorization.low_rank import svd_llm
from curconvert.factorization.measured import check_rank, deployed, measured
from curconvert.factorization.types import Factorization, Problem
from curconvert.linalg.chunked import ChunkedMatrix
from curconvert.linalg.gram import solve_right
from curconvert.linalg.metrics import FullMetric
from curconvert.linalg.statistics import InputStatistics
from curconvert.selection.indices import Metric, leading_rows, pivoted_qr, tensor_rng

_LARGEST = 2.0  # limit of |T|; every swap more than doubles |det A[I]|, so there are few


def factorize_rows(problem: Problem, ridge: float, seed: int) -> Factorization:
    """Factorize a weight into r of its rows and the coefficients that combine them to the other rows.

    R holds r rows of W, exact copies in the deployed dtype. T is solved for these rounded rows.

    Args:
        problem: The matrix; R has rows of the weight even if the target differs.
        ridge: λ of `H + λ diag(H)`.
        seed: Seeds the sketch of matrices with many outputs, together with the name.

    Raises:
        InputError: No (m, n) matrix has this rank.
    """
    weight, rank = problem.weight, problem.rank
    check_rank(problem.name, weight.shape, rank)
    metric = FullMetric(problem.statistics, ridge)
    rows = leading_rows(ChunkedMatrix(weight), metric, rank, tensor_rng(seed, problem.name))
    R = weight.to(problem.dtype)[torch.from_numpy(rows).long()]
    others = torch.from_numpy(_others(rows, len(weight)))
    T = interpolation(ChunkedMatrix(problem.wanted[others]), R.to(torch.float64).numpy(), metric)
    return measured("interpolative", _tensors(rows, R, T), rank, weight, problem.statistics, basis="rows")


def factorize_subspace(problem: Problem, ridge: float) -> Factorization:
    """Factorize a weight by SVD-LLM, and store the result as r of its rows and coefficients (PIFA, arXiv 2501.19090).

    Args:
        problem: The matrix.
        ridge: λ of `H + λ diag(H)`.

    Raises:
        InputError: No (m, n) matrix has this rank.
    """
    check_rank(problem.name, problem.weight.shape, problem.rank)
    metric = FullMetric(problem.statistics, ridge)
    best = svd_llm(problem.wanted.to(torch.float64).numpy(), metric, problem.rank)
    return interpolative_from(problem.weight, *best, problem.statistics, problem.dtype)


def interpolative_from(
    weight: Tensor, A: Matrix, B: Matrix, statistics: InputStatistics, dtype: torch.dtype
) -> Factorization:
    """Store a rank-r approximation A·B of a weight in interpolative form, without loss.

    Args:
        weight: W, (m, n), any float dtype; errors are measured against it.
        A: (m, r) with orthonormal columns.
        B: (r, n).
        statistics: Statistics of the layer's input.
        dtype: Deployed dtype of R and T.
    """
    return measured("interpolative", spanned(A, B, dtype), A.shape[1], weight, statistics, basis="subspace")


def spanned(A: Matrix, B: Matrix, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors of A·B in interpolative form, by suffix; arguments as for `interpolative_from`."""
    rows, T = spanning_rows(A)
    return _tensors(rows, deployed(A[rows] @ B, dtype), T)


def _tensors(rows: Indices, R: Tensor, T: Matrix) -> dict[str, Tensor]:
    m, rank = len(rows) + len(T), len(rows)
    order = np.empty(m, dtype=np.int32)
    order[rows], order[_others(rows, m)] = np.arange(rank), np.arange(rank, m)
    return {"R": R, "T": deployed(T, R.dtype), "rows": torch.from_numpy(rows), "order": torch.from_numpy(order)}


def interpolation(others: ChunkedMatrix, R: Matrix, metric: Metric) -> Matrix:
    """Solve `min_T ‖(W' − T R) H^½‖_F`: `T = W' H Rᵀ (R H Rᵀ)⁺`.

    Args:
        others: W', (m − r, n).
        R: (r, n).
        metric: H, (n, n).

    Returns:
        T, (m − r, r). Rank-deficient R or H give the least-norm solution.
    """
    weighted = metric.times(R.T)
    return solve_right(others.times(weighted), R @ weighted)


def spanning_rows(basis: Matrix) -> tuple[Indices, Matrix]:
    """Choose r rows of an orthonormal basis A that give all other rows with small coefficients.

    It starts with column-pivoted QR of Aᵀ; swaps then bound the coefficients (maxvol, Goreinov et al. 2010).

    Args:
        basis: A, (m, r), orthonormal columns.

    Returns:
        Rows I, (r,) distinct; T with `A[others] = T A[I]`, (m − r, r), others ascending, |T| ≤ 2.
    """
    rank = basis.shape[1]
    rows = pivoted_qr(basis.T, rank)
    while True:
        others = _others(rows, len(basis))
        T = scipy.linalg.solve(basis[rows].T, basis[others].T, check_finite=False).T
        if not T.size or np.abs(T).max() <= _LARGEST:
            return rows, np.asarray(T)
        i, k = divmod(int(np.abs(T).argmax()), rank)
        rows[k] = others[i]


def _others(rows: Indices, m: int) -> NDArray[np.intp]:
    """Return the rows that are not in `rows`, ascending."""
    return np.setdiff1d(np.arange(m), rows)
