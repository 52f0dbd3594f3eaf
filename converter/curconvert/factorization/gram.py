"""The metric in which errors count: the input Gram matrix H."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from curconvert.calibration.statistics import InputStatistics
from curconvert.errors import InputError
from curconvert.factorization.types import Basis, ErrorBound, Factorization, Form

Matrix = NDArray[np.float64]


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

    N is projected on the eigenvectors first: a G⁺ formed on its own has entries as large as the condition number, and
    their rounding errors alone would outweigh the result.
    """
    values, vectors = scipy.linalg.eigh(gram, driver="evd", check_finite=False)
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    vectors = vectors[:, kept]
    return np.asarray((numerator @ vectors / values[kept]) @ vectors.T)


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
    weight: Matrix,
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
        weight: W, (m, n), unrounded.
        statistics: Of the layer's input; errors are in its own metric, without a ridge.
        bound: Passed on.
        basis: Passed on.
    """
    stored = {suffix: tensor.contiguous() for suffix, tensor in tensors.items()}
    with np.errstate(invalid="ignore", over="ignore"):  # factors that overflowed are the caller's to refuse
        error = weight - Factorization(form, _shape(weight), stored, rank, 0.0, 0.0).product().numpy()
        output, frobenius = output_norm(error, statistics.gram), float(np.linalg.norm(error))
    return Factorization(
        form=form,
        shape=_shape(weight),
        tensors=stored,
        rank=rank,
        relative_output_error=_ratio(output, output_norm(weight, statistics.gram)),
        relative_frobenius_error=_ratio(frobenius, float(np.linalg.norm(weight))),
        bound=bound,
        basis=basis,
    )


def deployed(matrix: Matrix, dtype: torch.dtype) -> Tensor:
    """Round to the deployed dtype."""
    return torch.from_numpy(np.ascontiguousarray(matrix)).to(dtype)


def _shape(weight: Matrix) -> tuple[int, int]:
    return weight.shape[0], weight.shape[1]


def _ratio(error: float, norm: float) -> float:
    return error / norm if norm > 0 else 0.0
