"""Which rows and columns of a matrix to keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from scipy.linalg.lapack import dpstrf

Selector = Literal["deim", "qdeim", "qr", "leverage", "random"]
Importance = Literal["output", "wanda", "activation", "weight"]
SELECTORS: tuple[str, ...] = get_args(Selector)
IMPORTANCES: tuple[str, ...] = get_args(Importance)
_OVERSAMPLING = 32  # extra sketch rows; the pivots of the leading `rank` hardly depend on it beyond this

Matrix = NDArray[np.float64]
Indices = NDArray[np.int32]


@dataclass(frozen=True)
class Selection:
    """Chosen rows and columns, in the order in which the method found them.

    Attributes:
        rows: (rank,) int32, distinct.
        columns: (rank,) int32, distinct.
        eta_rows: `‖P[rows]⁻¹‖₂` for left singular vectors P (exact DEIM only).
        eta_columns: The same for the right singular vectors.
        sigma_next: The (rank+1)-th singular value of the importance matrix (exact DEIM only).
    """

    rows: Indices
    columns: Indices
    eta_rows: float | None = None
    eta_columns: float | None = None
    sigma_next: float | None = None


def importance_matrix(weight: Matrix, rms: NDArray[np.float64], importance: Importance) -> Matrix:
    """Scale a weight by how strongly its inputs are driven.

    Args:
        weight: W, (m, n).
        rms: a, (n,), root mean square of each input feature.
        importance: `wanda`: |W|∘a (CURing, after Wanda, arXiv 2306.11695); `activation`: W∘a; `weight`: W;
            `output`: W∘a, for the columns (its rows are chosen by `leading_rows`).
    """
    if importance == "weight":
        return weight
    return (np.abs(weight) if importance == "wanda" else weight) * rms


def deim(basis: Matrix) -> Indices:
    """Exact DEIM (Sorensen & Embree, arXiv 1407.5516): greedy interpolation points of an orthonormal basis.

    The greedy points are the row pivots of LU with partial pivoting, in order, so one LAPACK call finds them.

    Args:
        basis: (n, r) with orthonormal columns, leading vector first.

    Returns:
        (r,) indices into the n rows.
    """
    _, swaps = scipy.linalg.lu_factor(basis, check_finite=False)
    order = np.arange(basis.shape[0])
    for step, other in enumerate(swaps[: basis.shape[1]]):
        order[[step, other]] = order[[other, step]]
    return order[: basis.shape[1]].astype(np.int32)


def pivoted_qr(matrix: Matrix, rank: int) -> Indices:
    """Indices of the first `rank` columns that QR with column pivoting takes."""
    _, pivots = scipy.linalg.qr(matrix, mode="r", pivoting=True, check_finite=False)
    return np.asarray(pivots[:rank], dtype=np.int32)


def _sketched_columns(matrix: Matrix, rank: int, rng: np.random.Generator) -> Indices:
    """Column pivots of a Gaussian sketch of the rows (Voronin & Martinsson, arXiv 1412.8447)."""
    size = rank + _OVERSAMPLING
    if size < matrix.shape[0]:
        matrix = rng.standard_normal((size, matrix.shape[0])) @ matrix
    return pivoted_qr(matrix, rank)


def leading_rows(output_gram: Matrix, rank: int) -> Indices:
    """Choose the outputs greedily: each time the one that those chosen before it predict worst.

    These are the column pivots of QR of `(W S)ᵀ`, `H = S Sᵀ`, and equally the pivots of the Cholesky factorization of
    the output Gram matrix, which LAPACK (dpstrf) computes without a root of H.

    Args:
        output_gram: `W H Wᵀ`, (m, m).
        rank: r ≤ m. Beyond the numerical rank the choice is arbitrary but valid.

    Returns:
        (r,) distinct, in the order of choice.
    """
    _, pivots, _, _ = dpstrf(output_gram)
    return np.asarray(pivots[:rank] - 1, dtype=np.int32)


def _leverage(basis: Matrix) -> Indices:
    scores = (basis**2).sum(axis=1)
    return np.argsort(-scores, kind="stable")[: basis.shape[1]].astype(np.int32)


_BASIS_SELECTORS: Mapping[str, Callable[[Matrix], Indices]] = {
    "deim": deim,
    "qdeim": lambda basis: pivoted_qr(basis.T, basis.shape[1]),  # Drmač & Gugercin, arXiv 1505.00370
    "leverage": _leverage,  # the largest leverage scores of Mahoney & Drineas 2009, without sampling
}


def select_rows_columns(matrix: Matrix, rank: int, selector: Selector, rng: np.random.Generator) -> Selection:
    """Choose `rank` rows and `rank` columns of an importance matrix.

    Args:
        matrix: (m, n) float64, from `importance_matrix`.
        rank: 1 ≤ rank ≤ min(m, n).
        selector: How to choose.
        rng: Used by `qr` (its sketch) and `random`.
    """
    m, n = matrix.shape
    if selector == "random":
        rows, columns = (rng.choice(size, rank, replace=False).astype(np.int32) for size in (m, n))
        return Selection(rows, columns)
    if selector == "qr":
        return Selection(_sketched_columns(matrix.T, rank, rng), _sketched_columns(matrix, rank, rng))
    left, sigma, right = scipy.linalg.svd(matrix, full_matrices=False, check_finite=False)
    left, right = np.ascontiguousarray(left[:, :rank]), np.ascontiguousarray(right[:rank].T)
    choose = _BASIS_SELECTORS[selector]
    rows, columns = choose(left), choose(right)
    if selector != "deim":
        return Selection(rows, columns)
    return Selection(
        rows,
        columns,
        eta_rows=float(1 / np.linalg.svd(left[rows], compute_uv=False)[-1]),
        eta_columns=float(1 / np.linalg.svd(right[columns], compute_uv=False)[-1]),
        sigma_next=float(sigma[rank]) if rank < len(sigma) else 0.0,
    )
