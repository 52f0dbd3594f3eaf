"""W ≈ [R; T·R] up to the order of rows: r outputs computed as they are, the others interpolated from them."""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from curconvert.calibration.statistics import InputStatistics
from curconvert.factorization.gram import check_rank, deployed, measured, ridged, solve_right
from curconvert.factorization.low_rank import svd_llm
from curconvert.factorization.types import Basis, Factorization
from curconvert.selection.indices import leading_rows, pivoted_qr

Matrix = NDArray[np.float64]
Indices = NDArray[np.int32]
_LARGEST = 2.0  # |T|; every swap more than doubles |det A[I]|, so there are few


def factorize_interpolative(
    name: str, weight: Tensor, statistics: InputStatistics, rank: int, basis: Basis, ridge: float, dtype: torch.dtype
) -> Factorization:
    """Factorize one linear layer's weight into r rows and the coefficients that make the other rows of them.

    Args:
        name: Tensor name, for messages.
        weight: W, (m, n), any float dtype.
        statistics: Of the layer's input.
        rank: 1 ≤ r ≤ min(m, n).
        basis: `rows`: R is r rows of W, bit for bit in the deployed dtype, and T is solved for them as deployed.
            `subspace`: R is r rows of the best rank-r approximation (SVD-LLM's), which R and T store without loss
            (PIFA, arXiv 2501.19090).
        ridge: λ of `H + λ diag(H)`.
        dtype: Deployed dtype of R and T.

    Raises:
        InputError: No (m, n) matrix has this rank.
    """
    check_rank(name, weight.shape, rank)
    W, H = weight.to(torch.float64).numpy(), ridged(statistics.gram, ridge)
    if basis == "subspace":
        return interpolative_from(weight, *svd_llm(W, H, rank), statistics, dtype)
    rows = leading_rows(W @ H @ W.T, rank)
    R = weight.to(dtype)[torch.from_numpy(rows).long()]
    T = interpolation(W[_others(rows, len(W))], R.to(torch.float64).numpy(), H)
    return _assembled(W, rows, R, T, statistics, basis, dtype)


def interpolative_from(
    weight: Tensor, A: Matrix, B: Matrix, statistics: InputStatistics, dtype: torch.dtype
) -> Factorization:
    """Store a rank-r approximation A·B of a weight in interpolative form, without loss.

    Args:
        weight: W, (m, n), any float dtype; errors are measured against it.
        A: (m, r) with orthonormal columns.
        B: (r, n).
        statistics: Of the layer's input.
        dtype: Deployed dtype of R and T.
    """
    rows, T = spanning_rows(A)
    R = deployed(A[rows] @ B, dtype)
    return _assembled(weight.to(torch.float64).numpy(), rows, R, T, statistics, "subspace", dtype)


def _assembled(
    W: Matrix, rows: Indices, R: Tensor, T: Matrix, statistics: InputStatistics, basis: Basis, dtype: torch.dtype
) -> Factorization:
    others, rank = _others(rows, len(W)), len(rows)
    order = np.empty(len(W), dtype=np.int32)
    order[rows], order[others] = np.arange(rank), np.arange(rank, len(W))
    tensors = {"R": R, "T": deployed(T, dtype), "rows": torch.from_numpy(rows), "order": torch.from_numpy(order)}
    return measured("interpolative", tensors, rank, W, statistics, basis=basis)


def interpolation(others: Matrix, R: Matrix, gram: Matrix) -> Matrix:
    """Solve `min_T ‖(W' − T R) H^½‖_F`: `T = W' H Rᵀ (R H Rᵀ)⁺`.

    Args:
        others: W', (m − r, n).
        R: (r, n).
        gram: H, (n, n) symmetric positive semi-definite.

    Returns:
        T, (m − r, r). Rank-deficient R or H give the least-norm solution.
    """
    weighted = gram @ R.T
    return solve_right(others @ weighted, R @ weighted)


def spanning_rows(basis: Matrix) -> tuple[Indices, Matrix]:
    """Choose r rows of an orthonormal basis A of which all other rows are moderate combinations.

    Column-pivoted QR of Aᵀ starts; swaps then bound the coefficients (maxvol, Goreinov et al. 2010).

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
    """Return the rows that were not chosen, ascending."""
    return np.setdiff1d(np.arange(m), rows)
