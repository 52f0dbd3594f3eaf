"""Measures the errors of stored factors, and builds the `Factorization` that reports them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from curconvert.base.errors import InputError
from curconvert.base.forms import Basis
from curconvert.base.types import Matrix
from curconvert.factorization.types import ErrorBound, Factorization, arrays
from curconvert.linalg.chunked import ChunkedMatrix
from curconvert.linalg.statistics import InputStatistics, squares


def check_rank(name: str, shape: tuple[int, ...], rank: int) -> None:
    """Reject a rank that no (m, n) matrix has.

    Raises:
        InputError: Not 1 ≤ rank ≤ min(m, n).
    """
    if not 1 <= rank <= min(shape):
        raise InputError(f"{name}: rank {rank}: expected 1 to {min(shape)} for a matrix of {shape[0]} × {shape[1]}")


def measured(
    form: str,
    tensors: Mapping[str, Tensor],
    rank: int,
    weight: Tensor,
    statistics: InputStatistics,
    *,
    bound: ErrorBound | None = None,
    basis: Basis | None = None,
) -> Factorization:
    """Return a factorization with the errors of its stored tensors, rounding included.

    Args:
        form: See `curconvert_runtime.format.forms`.
        tensors: Factors in the deployed dtype and indices in int32.
        rank: r.
        weight: W, (m, n), any float dtype, unrounded.
        statistics: Statistics of the layer's input; errors are in its metric, without a ridge.
        bound: See `Factorization`.
        basis: See `Factorization`.
    """
    stored = {suffix: tensor.contiguous() for suffix, tensor in tensors.items()}
    shape = (weight.shape[0], weight.shape[1])
    totals = np.zeros(4)
    with np.errstate(invalid="ignore", over="ignore"):  # the caller rejects factors that overflow
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
    """Yield for each chunk of rows: squared output error, squared output, squared error and squared weight."""
    thin = factors.traits.thin(arrays(factors.tensors))
    if thin is None:
        whole = factors.product().numpy()
        for rows, part in weight.chunks():
            error = part - whole[rows]
            yield statistics.energy(error), statistics.energy(part), squares(error), squares(part)
        return
    left, right = thin
    common = statistics.images(right)
    for rows, part in weight.chunks():
        # Images of the factors cost little compared to images of the weight, which are needed anyway.
        error, images = part - left[rows] @ right, statistics.images(part)
        missed = images - left[rows].astype(common.dtype, copy=False) @ common
        yield statistics.energy(error, missed), statistics.energy(part, images), squares(error), squares(part)


def deployed(matrix: Matrix, dtype: torch.dtype) -> Tensor:
    """Round a matrix to the deployed dtype."""
    return torch.from_numpy(np.ascontiguousarray(matrix)).to(dtype)


def _ratio(error: float, whole: float) -> float:
    return float(np.sqrt(error / whole)) if whole > 0 else 0.0
