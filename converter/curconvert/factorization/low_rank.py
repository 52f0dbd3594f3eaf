"""Computes the best rank-r approximations in several metrics, as pairs (A, B) with Ŵ = A·B.

Each is a projection `Ŵ = P Pᵀ W` on r leading left singular vectors P of W times a scaling S. By Eckart–Young,
`P Pᵀ (W S)` is the best rank-r approximation of `W S`, and S cancels without an inverse. So dead inputs, for which S
is singular, need no special case: their columns keep the projection's value.

P comes from the Gram matrix of the shorter side: an SVD takes several times as long. This squares the condition number.
Directions below 1e-8 of the largest are not resolved, but together they carry less than 1e-8 of the output, below
float32's rounding. P itself is orthonormal to machine precision.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from curconvert.base.types import Matrix, Vector
from curconvert.linalg.gram import square_root
from curconvert.linalg.metrics import FullMetric


def svd_llm(weight: Matrix, metric: FullMetric, rank: int) -> tuple[Matrix, Matrix]:
    """Minimize `‖(W − A B) H^½‖_F`, the output error (SVD-LLM, arXiv 2403.07378).

    With `H = S Sᵀ` and the SVD `W S = P Σ Qᵀ` the minimum is `P_r P_rᵀ W`.

    Args:
        weight: W, (m, n).
        metric: H, (n, n).
        rank: 1 ≤ r ≤ min(m, n).

    Returns:
        A = P_r, (m, r) with orthonormal columns, leading first; B = P_rᵀ W, (r, n).
    """
    m, n = weight.shape
    if m <= n:  # P are the eigenvectors of the output Gram matrix, and no root of the larger H is needed
        basis = _leading_eigenvectors(weight @ metric.times(weight.T), rank)
    else:
        basis = _leading_left(weight @ square_root(metric.dense()), rank)
    return basis, basis.T @ weight


def asvd(weight: Matrix, rms: Vector, rank: int, alpha: float = 0.5) -> tuple[Matrix, Matrix]:
    """Minimize `‖(W − A B) diag(a)^α‖_F` (ASVD, arXiv 2312.05821, with the root mean square of each input as a).

    Args:
        weight: W, (m, n).
        rms: a, (n,).
        rank: 1 ≤ r ≤ min(m, n).
        alpha: α, 0.5 in the paper.

    Returns:
        A, (m, r) with orthonormal columns, leading first; B, (r, n).
    """
    basis = _leading_left(weight * rms**alpha, rank)
    return basis, basis.T @ weight


def plain(weight: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """Minimize `‖W − A B‖_F`: the truncated SVD (Eckart & Young 1936).

    Returns:
        A, (m, r) with orthonormal columns, leading first; B, (r, n).
    """
    basis = _leading_left(weight, rank)
    return basis, basis.T @ weight


def fwsvd(weight: Matrix, fisher_rows: Vector, rank: int) -> tuple[Matrix, Matrix]:
    """Minimize `‖diag(f)^½ (W − A B)‖_F` (FWSVD, arXiv 2207.00112).

    The scaling is on the left here, so the projection uses right singular vectors: `Ŵ = W Q Qᵀ`.

    Args:
        weight: W, (m, n).
        fisher_rows: f, (m,): Fisher information summed over each row of W, not negative.
        rank: 1 ≤ r ≤ min(m, n).

    Returns:
        A, (m, r); B, (r, n) with orthonormal rows, leading first.
    """
    basis = _leading_left((weight * np.sqrt(fisher_rows)[:, None]).T, rank)
    return weight @ basis, basis.T


def _leading_eigenvectors(symmetric: Matrix, rank: int) -> Matrix:
    _, vectors = scipy.linalg.eigh(symmetric, driver="evd", check_finite=False)
    return np.ascontiguousarray(vectors[:, : -rank - 1 : -1])


def _leading_left(matrix: Matrix, rank: int) -> Matrix:
    """Return r leading left singular vectors, (m, r), orthonormal for a matrix of any rank."""
    if matrix.shape[0] <= matrix.shape[1]:
        return _leading_eigenvectors(matrix @ matrix.T, rank)
    right = _leading_eigenvectors(matrix.T @ matrix, rank)
    # M Q = P Σ has the right columns; QR orthonormalizes them without dividing by a small σ.
    basis, _ = scipy.linalg.qr(matrix @ right, mode="economic", check_finite=False)
    return np.asarray(basis)
