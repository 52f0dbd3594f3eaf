"""The metric in which errors count: the input Gram matrix H."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotrs
from torch import Tensor

from curconvert.calibration.statistics import InputStatistics, squares
from curconvert.chunked import ChunkedMatrix
from curconvert.errors import InputError
from curconvert.factorization.types import Basis, ErrorBound, Factorization, Form

Matrix = NDArray[np.float64]
LEAST_RIDGE = 1e-10  # a singular matrix stays solvable, far above its rounding errors
_NEAREST = 1e-4  # least distance of a unit vector from the span of the others: a Gram matrix loses half the digits


def ridged(gram: Matrix, ridge: float) -> Matrix:
    """Return `H + λ diag(H)`: every feature is regularised in its own units, and dead ones stay dead."""
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
    """Return `N (G + λ diag(G))⁻¹`: each feature is regularised in its own units, and dead ones are given zero.

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


def check_rank(name: str, shape: tuple[int, ...], rank: int) -> None:
    """Refuse a rank that no (m, n) matrix has.

    Raises:
        InputError: Not 1 ≤ rank ≤ min(m, n).
    """
    if not 1 <= rank <= min(shape):
        raise InputError(f"{name}: rank {rank}: expected 1 to {min(shape)} for a matrix of {shape[0]} × {shape[1]}")


def measured(
    form: Form,
    tensors: Mapping[str, Tensor],
    rank: int,
    weight: Tensor,
    statistics: InputStatistics,
    *,
    bound: ErrorBound | None = None,
    basis: Basis | None = None,
) -> Factorization:
    """Return a factorization with the errors of its tensors as they are stored, rounding included.

    Args:
        form: See `curconvert_runtime.forms`.
        tensors: Factors in the deployed dtype and indices in int32.
        rank: r.
        weight: W, (m, n), any float dtype, unrounded.
        statistics: Of the layer's input; errors are in its own metric, without a ridge.
        bound: Passed on.
        basis: Passed on.
    """
    stored = {suffix: tensor.contiguous() for suffix, tensor in tensors.items()}
    shape = (weight.shape[0], weight.shape[1])
    totals = np.zeros(4)
    with np.errstate(invalid="ignore", over="ignore"):  # factors that overflowed are the caller's to refuse
        for part in _errors(Factorization(form, shape, stored, rank, 0.0, 0.0), ChunkedMatrix(weight), statistics):
            totals += part
    return Factorization(
        form=form,
        shape=shape,
        tensors=stored,
        rank=rank,
        relative_output_error=_ratio(totals[0], totals[1]),
        relative_frobenius_error=_ratio(totals[2], totals[3]),
        bound=bound,
        basis=basis,
    )


def _errors(
    factors: Factorization, weight: ChunkedMatrix, statistics: InputStatistics
) -> Iterator[tuple[float, float, float, float]]:
    """Yield of some rows at a time: squared output error and output, squared error and weight."""
    thin = _thin(factors)
    if thin is None:
        whole = factors.product().numpy()
        for rows, part in weight.chunks():
            error = part - whole[rows]
            yield statistics.energy(error), statistics.energy(part), squares(error), squares(part)
        return
    left, right = thin
    common = statistics.images(right)
    for rows, part in weight.chunks():
        # The images of the factors cost little beside those of the weight, which are needed anyway.
        error, images = part - left[rows] @ right, statistics.images(part)
        missed = images - left[rows].astype(common.dtype, copy=False) @ common
        yield statistics.energy(error, missed), statistics.energy(part, images), squares(error), squares(part)


def _thin(factors: Factorization) -> tuple[Matrix, Matrix] | None:
    """Return two factors, (m, r) and (r, n), of which a matrix is the product; None for the forms that keep a part."""
    wide = {suffix: tensor.to(torch.float64).numpy() for suffix, tensor in factors.tensors.items()}
    if factors.form == "cur":
        return wide["C"], wide["U"] @ wide["R"]
    if factors.form == "two_factor":
        return wide["A"], wide["B"]
    if factors.form == "interpolative":
        left = np.concatenate([np.eye(factors.rank), wide["T"]])[factors.tensors["order"].numpy()]
        return left, wide["R"]
    return None


def deployed(matrix: Matrix, dtype: torch.dtype) -> Tensor:
    """Round to the deployed dtype."""
    return torch.from_numpy(np.ascontiguousarray(matrix)).to(dtype)


def _ratio(error: float, whole: float) -> float:
    return float(np.sqrt(error / whole)) if whole > 0 else 0.0
