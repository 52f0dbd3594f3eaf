"""The metric in which errors count: the input Gram matrix H."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from scipy.linalg.lapack import dpotrf, dpotrs

from curconvert.base.types import Matrix

LEAST_RIDGE = 1e-10  # a singular matrix stays solvable, far above its rounding errors
_NEAREST = 1e-4  # least distance of a unit vector from the span of the others: a Gram matrix loses half the digits


def ridged(gram: Matrix, ridge: float) -> Matrix:
    """Return `H + λ diag(H)`: every feature is regularized in its own units, and dead ones stay dead."""
    return np.asarray(gram + ridge * np.diag(np.diag(gram)))


def square_root(gram: Matrix) -> Matrix:
    """Return S with `H = S Sᵀ`, (n, n).

    By eigendecomposition, S = V Λ^½, as in SVD-LLM v2 (arXiv 2503.12340), and not by Cholesky: H is singular as
    soon as an input feature is dead or there are fewer tokens than features, where Cholesky breaks down and
    eigenvalues are only clipped at zero. Nothing here ever divides by S; see `low_rank`.

    Args:
        gram: H, (n, n) symmetric positive semi-definite up to rounding.
    """
    values, vectors = scipy.linalg.eigh(gram, driver="evd", check_finite=False)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))


def solve_right(numerator: Matrix, gram: Matrix) -> Matrix:
    """Return `N G⁺` for a symmetric positive semi-definite G.

    By Cholesky where G is far from singular. Where it is not, N is projected on the eigenvectors first: a G⁺ formed on
    its own has entries as large as the condition number, and their rounding errors alone would outweigh the result.
    """
    found = _definite_solve(gram, numerator.T)
    if found is not None:
        return found.T
    values, vectors = scipy.linalg.eigh(gram, driver="evd", check_finite=False)
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    vectors = vectors[:, kept]
    return np.asarray((numerator @ vectors / values[kept]) @ vectors.T)


def ridge_solve(numerator: Matrix, gram: Matrix, ridge: float) -> Matrix:
    """Return `N (G + λ diag(G))⁻¹`: each feature is regularized in its own units, and dead ones are given zero.

    Args:
        numerator: N, (m, n), zero in the columns of dead features.
        gram: G, (n, n) symmetric positive semi-definite up to rounding.
        ridge: λ; at least 1e-10 is taken.
    """
    scales = np.sqrt(np.diag(gram))
    scales = np.where(scales > 0, scales, 1.0)
    inner = gram / scales[:, None] / scales
    np.fill_diagonal(inner, np.diag(inner) + max(ridge, LEAST_RIDGE))
    found = scipy.linalg.solve(inner, (numerator / scales).T, assume_a="pos", check_finite=False)
    return np.asarray(found.T / scales)


def least_squares(A: Matrix, B: Matrix) -> Matrix:
    """Solve `min_X ‖A X − B‖_F`, with the least norm where the columns of A are dependent.

    By the normal equations where the columns are far from dependent: products of large matrices, several times as fast
    as Householder's QR, which serves elsewhere.

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
    """Return the pseudo-inverse of a wide matrix, (n, r) of (r, n), by the ways of `least_squares`."""
    solved = _definite_solve(R @ R.T, R)
    if solved is not None:
        return solved.T
    basis, triangle = scipy.linalg.qr(R.T, mode="economic", check_finite=False)
    if _dependent(triangle):
        return np.asarray(scipy.linalg.pinv(R, check_finite=False))
    return np.asarray(scipy.linalg.solve_triangular(triangle, basis.T, check_finite=False).T)


def _definite_solve(gram: Matrix, right: Matrix) -> Matrix | None:
    """Return `G⁻¹ B` by Cholesky; None where G is singular or so near to it that digits would be lost.

    Args:
        gram: G, (r, r) symmetric positive semi-definite up to rounding; scaled to a unit diagonal first.
        right: B, (r, k).
    """
    scales = np.sqrt(np.maximum(np.diag(gram), 0.0))
    if scales.min() <= np.finfo(np.float64).tiny:
        return None
    # A NaN, of an input that overflowed, goes the slow way too, to be refused where it always was.
    root, failed = dpotrf(gram / scales[:, None] / scales, lower=1)
    if failed or not np.diag(root).min() > _NEAREST:
        return None
    solved, _ = dpotrs(root, right / scales[:, None], lower=1)
    return np.asarray(solved / scales[:, None])


def _dependent(triangle: Matrix) -> bool:
    pivots = np.abs(np.diag(triangle))
    return bool(pivots.min() <= len(pivots) * np.finfo(np.float64).eps * pivots.max())


def output_norm(matrix: Matrix, gram: Matrix) -> float:
    """`‖M H^½‖_F = sqrt(tr(M H Mᵀ))`."""
    return float(np.sqrt(max(np.einsum("ij,ij->", matrix @ gram, matrix), 0.0)))
