"""Which rows and columns of a matrix to keep."""

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

_OVERSAMPLING = 32  # extra sketch rows; the pivots of the leading `rank` hardly depend on it beyond this
EXACT_OUTPUTS = 2048  # up to which the output Gram matrix is formed


class Metric(Protocol):
    """A symmetric positive semi-definite matrix H, (n, n), known by its products."""

    def times(self, matrix: Matrix) -> Matrix:
        """Return `H M`, (n, k)."""


class RootedMetric(Metric, Protocol):
    """One that can be sketched."""

    def sketch(self, size: int, rng: np.random.Generator) -> Matrix:
        """Return `S Ω` with `H = S Sᵀ` and Ω Gaussian, (n, size)."""


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


def tensor_rng(seed: int, name: str) -> np.random.Generator:
    """Return a generator that depends on the seed and the tensor's name alone, not on the order of work."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


def importance_matrix(weight: Tensor, rms: Vector, importance: Importance) -> ChunkedMatrix:
    """Scale a weight by how strongly its inputs are driven.

    Args:
        weight: W, (m, n), any float dtype.
        rms: a, (n,), root mean square of each input feature.
        importance: `wanda`: |W|∘a (CURing, after Wanda, arXiv 2306.11695); `activation`: W∘a; `weight`: W;
            `output`: W∘a, for the columns (its rows are chosen by `leading_rows`).
    """
    if importance == "weight":
        return ChunkedMatrix(weight)
    return ChunkedMatrix(weight, absolute=importance == "wanda", scale=rms)


def deim(basis: Matrix) -> Indices:
    """Exact DEIM (Sorensen & Embree, arXiv 1407.5516): greedy interpolation points of an orthonormal basis.

    The greedy points are the row pivots of LU with partial pivoting, in order, so one LAPACK call finds them.

    Args:
        basis: (n, r) with orthonormal columns, leading vector first.

    Returns:
        (r,) indices into the n rows.
    """
    return _row_pivots(basis)


def _row_pivots(matrix: NDArray[np.floating[Any]]) -> Indices:
    """Row pivots of LU with partial pivoting in the matrix's precision, (k,) of an (n, k) matrix with n ≥ k."""
    (factorize,) = scipy.linalg.get_lapack_funcs(("getrf",), (matrix,))
    _, swaps, _ = factorize(matrix)  # a column of zeros ends no factorization: its pivot is as good as any
    order = np.arange(matrix.shape[0])
    for step, other in enumerate(swaps[: matrix.shape[1]]):
        order[[step, other]] = order[[other, step]]
    return order[: matrix.shape[1]].astype(np.int32)


def pivoted_qr(matrix: Matrix, rank: int) -> Indices:
    """Indices of the first `rank` columns that QR with column pivoting takes."""
    _, pivots = scipy.linalg.qr(matrix, mode="r", pivoting=True, check_finite=False)
    return np.asarray(pivots[:rank], dtype=np.int32)


def _sketched(matrix: ChunkedMatrix, rank: int, rng: np.random.Generator) -> tuple[Indices, Indices]:
    """Row and column pivots of Gaussian sketches of the columns and rows (Voronin & Martinsson, arXiv 1412.8447)."""
    (m, n), size = matrix.shape, rank + _OVERSAMPLING
    narrow = matrix.times(rng.standard_normal((size, n)).T) if size < n else matrix.dense()
    low = matrix.left_times(rng.standard_normal((size, m))) if size < m else matrix.dense()
    return pivoted_qr(narrow.T, rank), pivoted_qr(low, rank)


def _sketched_lu(matrix: ChunkedMatrix, rank: int, rng: np.random.Generator) -> tuple[Indices, Indices]:
    """LU's pivots: columns from a Gaussian sketch of the rows, rows from these columns (Dong & Martinsson 2104.05877).

    One product with the matrix and no orthogonalization: the fastest selector. In float32, for a sketch is random
    anyway. More rows of the sketch than columns are wanted would not change the pivots.
    """
    single = matrix.single()
    drawn = torch.from_numpy(rng.standard_normal((rank, matrix.shape[0]), dtype=np.float32)).to(single.device)
    columns = _row_pivots(product(drawn, single).cpu().numpy().T)
    kept = single[:, torch.from_numpy(columns).long()]
    return _row_pivots(kept.cpu().numpy()), columns


def leading_rows(weight: ChunkedMatrix, metric: RootedMetric, rank: int, rng: np.random.Generator) -> Indices:
    """Choose the outputs greedily: each time the one that those chosen before it predict worst.

    These are the column pivots of QR of `(W S)ᵀ`, `H = S Sᵀ`, and equally the pivots of the Cholesky factorization of
    the output Gram matrix `W H Wᵀ`, which LAPACK (dpstrf) computes without a root of H. Above `EXACT_OUTPUTS` outputs
    that matrix would cost more than all else, and QR takes the pivots of a Gaussian sketch of `(W S)ᵀ` instead.

    Args:
        weight: W, (m, n).
        metric: H, (n, n).
        rank: r ≤ m. Beyond the numerical rank the choice is arbitrary but valid.
        rng: Draws the sketch.

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
        exact_svd: Take the singular vectors of `deim`, `qdeim` and `leverage` from a full SVD, as CURing does, and
            report the numbers of DEIM's bound; otherwise they are those of `leading_bases`.
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
