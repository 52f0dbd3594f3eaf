"""Chooses the rows and columns of a matrix to keep."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from scipy.linalg.lapack import dpstrf
from torch import Tensor

from curconvert.base.types import Indices, Matrix, Vector
from curconvert.linalg.bases import exact_bases, leading_bases
from curconvert.linalg.chunked import ChunkedMatrix, product
from curconvert.options.choices import Importance, Selector

_OVERSAMPLING = 32  # extra sketch rows; more hardly change the leading `rank` pivots
EXACT_OUTPUTS = 2048  # with more outputs, the output Gram matrix is not formed


class Metric(Protocol):
    """Gives products with a symmetric positive semi-definite matrix H, (n, n)."""

    def times(self, matrix: Matrix) -> Matrix:
        """Return `H M`, (n, k)."""


class RootedMetric(Metric, Protocol):
    """Gives products and random sketches of H."""

    def sketch(self, size: int, rng: np.random.Generator) -> Matrix:
        """Return `S Ω` with `H = S Sᵀ` and Ω Gaussian, (n, size)."""


@dataclass(frozen=True)
class Selection:
    """Holds the chosen rows and columns, in the order in which the method found them.

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


def tensor_rng(seed: int, name: str) -> np.random.Generator:
    """Return a generator that depends only on the seed and the tensor's name, not on the order of tasks."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


def importance_matrix(weight: Tensor, rms: Vector, importance: Importance) -> ChunkedMatrix:
    """Return the matrix from which rows and columns are chosen: a weight scaled by the size of its inputs.

    Args:
        weight: W, (m, n), any float dtype.
        rms: a, (n,), root mean square of each input feature.
        importance: `wanda`: |W|∘a (CURing, after Wanda, arXiv 2306.11695); `activation`: W∘a; `weight`: W;
            `output`: W∘a, for the columns (`leading_rows` chooses the rows).
    """
    if importance == "weight":
        return ChunkedMatrix(weight)
    return ChunkedMatrix(weight, absolute=importance == "wanda", scale=rms)


def deim(basis: Matrix) -> Indices:
    """Return the greedy interpolation points of an orthonormal basis: exact DEIM (Sorensen & Embree, arXiv 1407.5516).

    The points are the row pivots of LU with partial pivoting, in order, so one LAPACK call finds them.

    Args:
        basis: (n, r) with orthonormal columns, leading vector first.

    Returns:
        (r,) indices into the n rows.
    """
    return _row_pivots(basis)


def _row_pivots(matrix: NDArray[np.floating[Any]]) -> Indices:
    """Return the row pivots of LU with partial pivoting, (k,) for an (n, k) matrix with n ≥ k, in its precision."""
    (factorize,) = scipy.linalg.get_lapack_funcs(("getrf",), (matrix,))
    _, swaps, _ = factorize(matrix)  # continues past a column of zeros, whose pivot is arbitrary
    order = np.arange(matrix.shape[0])
    for step, other in enumerate(swaps[: matrix.shape[1]]):
        order[[step, other]] = order[[other, step]]
    return order[: matrix.shape[1]].astype(np.int32)


def pivoted_qr(matrix: Matrix, rank: int) -> Indices:
    """Return the first `rank` column pivots of QR with column pivoting."""
    _, pivots = scipy.linalg.qr(matrix, mode="r", pivoting=True, check_finite=False)
    return np.asarray(pivots[:rank], dtype=np.int32)


def _sketched(matrix: ChunkedMatrix, rank: int, rng: np.random.Generator) -> tuple[Indices, Indices]:
    """Return row and column pivots, from Gaussian sketches of both sides (Voronin & Martinsson, arXiv 1412.8447)."""
    (m, n), size = matrix.shape, rank + _OVERSAMPLING
    narrow = matrix.times(rng.standard_normal((size, n)).T) if size < n else matrix.dense()
    low = matrix.left_times(rng.standard_normal((size, m))) if size < m else matrix.dense()
    return pivoted_qr(narrow.T, rank), pivoted_qr(low, rank)


def _sketched_lu(matrix: ChunkedMatrix, rank: int, rng: np.random.Generator) -> tuple[Indices, Indices]:
    """Return LU's pivots: columns from a sketch of the rows, rows from these columns (Dong & Martinsson 2104.05877).

    This is the fastest selector: one product with the matrix and no orthogonalization. Float32 is enough, because the
    Gaussian sketch is random anyway. A sketch with more than `rank` rows would not change the pivots.
    """
    single = matrix.single()
    drawn = torch.from_numpy(rng.standard_normal((rank, matrix.shape[0]), dtype=np.float32)).to(single.device)
    columns = _row_pivots(product(drawn, single).cpu().numpy().T)
    kept = single[:, torch.from_numpy(columns).long()]
    return _row_pivots(kept.cpu().numpy()), columns


def leading_rows(weight: ChunkedMatrix, metric: RootedMetric, rank: int, rng: np.random.Generator) -> Indices:
    """Choose outputs greedily: each time the output that the chosen ones predict worst.

    The choice is the column pivots of QR of `(W S)ᵀ`, `H = S Sᵀ`. They are also the pivots of the Cholesky
    factorization of the output Gram matrix `W H Wᵀ`, which LAPACK (dpstrf) computes without a root of H. Above
    `EXACT_OUTPUTS` outputs that matrix would dominate the cost, so QR of a Gaussian sketch of `(W S)ᵀ` is used.

    Args:
        weight: W, (m, n).
        metric: H, (n, n).
        rank: r ≤ m. Beyond the numerical rank the choice is arbitrary but valid.
        rng: For the sketch.

    Returns:
        (r,) distinct, in the order of choice.
    """
    m, size = weight.shape[0], rank + _OVERSAMPLING
    if m > max(EXACT_OUTPUTS, size):
        return pivoted_qr(weight.times(metric.sketch(size, rng)).T, rank)
    W = weight.dense()
    _, pivots, _, _ = dpstrf(W @ metric.times(W.T))
    return np.asarray(pivots[:rank] - 1, dtype=np.int32)


def _leverage(basis: Matrix) -> Indices:
    scores = (basis**2).sum(axis=1)
    return np.argsort(-scores, kind="stable")[: basis.shape[1]].astype(np.int32)


_CHOICES: Mapping[str, Callable[[Matrix], Indices]] = {
    "deim": deim,
    "qdeim": lambda basis: pivoted_qr(basis.T, basis.shape[1]),  # Drmač & Gugercin, arXiv 1505.00370
    "leverage": _leverage,  # the largest leverage scores of Mahoney & Drineas 2009, without sampling
}


def select_rows_columns(
    matrix: ChunkedMatrix, rank: int, selector: Selector, rng: np.random.Generator, *, exact_svd: bool = False
) -> Selection:
    """Choose `rank` rows and `rank` columns of an importance matrix.

    Args:
        matrix: (m, n), from `importance_matrix`.
        rank: 1 ≤ rank ≤ min(m, n).
        selector: How to choose.
        rng: Used by `qr` and `lu` (their sketches), `random`, and for randomized singular vectors.
        exact_svd: Compute the singular vectors for `deim`, `qdeim` and `leverage` by a full SVD, as CURing does, and
            report the numbers of DEIM's bound; otherwise by `leading_bases`.
    """
    m, n = matrix.shape
    if selector == "random":
        rows, columns = (rng.choice(size, rank, replace=False).astype(np.int32) for size in (m, n))
        return Selection(rows, columns)
    if selector == "qr":
        return Selection(*_sketched(matrix, rank, rng))
    if selector == "lu":
        return Selection(*_sketched_lu(matrix, rank, rng))
    choose = _CHOICES[selector]
    if not exact_svd:
        left, right = leading_bases(matrix, rank, rng)
        return Selection(choose(left), choose(right))
    left, right, sigma_next = exact_bases(matrix.dense(), rank)
    rows, columns = choose(left), choose(right)
    if selector != "deim":
        return Selection(rows, columns)
    return Selection(
        rows,
        columns,
        eta_rows=float(1 / np.linalg.svd(left[rows], compute_uv=False)[-1]),
        eta_columns=float(1 / np.linalg.svd(right[columns], compute_uv=False)[-1]),
        sigma_next=sigma_next,
    )
