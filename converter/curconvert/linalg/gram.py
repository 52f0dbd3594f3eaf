"""Solves and decompositions with the input Gram matrix H, the metric of errors."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from scipy.linalg.lapack import dpotrf, dpotrs

from curconvert.base.types import Matrix

LEAST_RIDGE = 1e-10  # makes a singular matrix solvable, and is far above its rounding errors
_NEAREST = 1e-4  # least distance of a unit vector from the span of the others: a Gram matrix loses half the digits


def ridged(gram: Matrix, ridge: float) -> Matrix:
    """Return `H + λ diag(H)`: the ridge is relative to each feature's energy, and dead features stay zero."""
    return np.asarray(gram + ridge * np.diag(np.diag(gram)))


def square_root(gram: Matrix) -> Matrix:
    """Return S with `H = S Sᵀ`, (n, n).

    It uses the eigendecomposition, S = V Λ^½, as in SVD-LLM v2 (arXiv 2503.12340). Cholesky would fail: H is singular
    if an input feature is dead or if there are fewer tokens than features. Negative eigenvalues are clipped at zero,
    which is safe because no caller divides by S; see `low_rank`.

    Args:
        gram: H, (n, n) symmetric positive semi-definite up to rounding.
    """
    values, vectors = scipy.linalg.eigh(gram, driver="evd", check_finite=False)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))


def solve_right(numerator: Matrix, gram: Matrix) -> Matrix:
    """Return `N G⁺` for a symmetric positive semi-definite G.

    It uses Cholesky if G is far from singular. Otherwise it projects N on the eigenvectors first: an explicit G⁺ has
    entries as large as the condition number, and their rounding errors would exceed the result.
    """
    found = _definite_solve(gram, numerator.T)
    if found is not None:
        return found.T
    values, vectors = scipy.linalg.eigh(gram, driver="evd", check_finite=False)
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    vectors = vectors[:, kept]
    return np.asarray((numerator @ vectors / values[kept]) @ vectors.T)


def ridge_solve(numerator: Matrix, gram: Matrix, ridge: float) -> Matrix:
    """Return `N (G + λ diag(G))⁻¹`, with zeros for dead features; the ridge is relative to each feature's energy.

    Args:
        numerator: N, (m, n), zero in the columns of dead features.
        gram: G, (n, n) symmetric positive semi-definite up to rounding.
        ridge: λ; raised to 1e-10 if smaller.
    """
    scales = np.sqrt(np.diag(gram))
    scales = np.where(scales > 0, scales, 1.0)
    inner = gram / scales[:, None] / scales
    np.fill_diagonal(inner, np.diag(inner) + max(ridge, LEAST_RIDGE))
    found = scipy.linalg.solve(inner, (numerator / scales).T, assume_a="pos", check_finite=False)
    return np.asarray(found.T / scales)


def least_squares(A: Matrix, B: Matrix) -> Matrix:
    """Solve `min_X ‖A X − B‖_F`; if the columns of A are dependent, return the solution with the least norm.

    It uses the normal equations if the columns are far from dependent, which is several times faster than Householder's
    QR. Otherwise it uses Householder's QR.

    Args:
        A: (m, r), m ≥ r.
        B: (m, k).

    Returns:
        X, (r, k).
    """
    solved = _definite_solve(A.T @ A, A.T @ B)
    if solved is not None:
        return solved
    basis, triangle = scipy.linalg.qr(A, mode="economic", check_finite=False)
    if _dependent(triangle):
        found, *_ = scipy.linalg.lstsq(A, B, check_finite=False)
        return np.asarray(found)
    return np.asarray(scipy.linalg.solve_triangular(triangle, basis.T @ B, check_finite=False))


def right_inverse(R: Matrix) -> Matrix:
    """Return the pseudo-inverse of a wide matrix, (n, r) for (r, n), with the same choices as `least_squares`."""
    solved = _definite_solve(R @ R.T, R)
    if solved is not None:
        return solved.T
    basis, triangle = scipy.linalg.qr(R.T, mode="economic", check_finite=False)
    if _dependent(triangle):
        return np.asarray(scipy.linalg.pinv(R, check_finite=False))
    return np.asarray(scipy.linalg.solve_triangular(triangle, basis.T, check_finite=False).T)


def _definite_solve(gram: Matrix, right: Matrix) -> Matrix | None:
    """Return `G⁻¹ B` by Cholesky; None if G is so close to singular that digits would be lost.

    Args:
        gram: G, (r, r) symmetric positive semi-definite up to rounding; scaled to a unit diagonal first.
        right: B, (r, k).
    """
    scales = np.sqrt(np.maximum(np.diag(gram), 0.0))
    if scales.min() <= np.finfo(np.float64).tiny:
        return None
    # A NaN, from an input that overflowed, also returns None: the slow way then rejects it.
    root, failed = dpotrf(gram / scales[:, None] / scales, lower=1)
    if failed or not np.diag(root).min() > _NEAREST:
        return None
    solved, _ = dpotrs(root, right / scales[:, None], lower=1)
    return np.asarray(solved / scales[:, None])


def _dependent(triangle: Matrix) -> bool:
    pivots = np.abs(np.diag(triangle))
    return bool(pivots.min() <= len(pivots) * np.finfo(np.float64).eps * pivots.max())


def output_norm(matrix: Matrix, gram: Matrix) -> float:
    """Return `‖M H^½‖_F = sqrt(tr(M H Mᵀ))`."""
    return float(np.sqrt(max(np.einsum("ij,ij->", matrix @ gram, matrix), 0.0)))
