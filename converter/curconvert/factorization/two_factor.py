"""Factorizes W ≈ A·B: two thin matrices, for comparison and for runtimes without a gather."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from curconvert.base.types import Matrix
from curconvert.factorization.measured import check_rank, deployed, measured
from curconvert.factorization.types import Factorization, Problem


def factorize_two_factor(problem: Problem, approximate: Callable[[Matrix], tuple[Matrix, Matrix]]) -> Factorization:
    """Factorize a weight into two thin factors.

    Args:
        problem: The matrix.
        approximate: Returns the factors, (m, r) and (r, n), of an approximation of its argument, see `low_rank`.

    Raises:
        InputError: No (m, n) matrix has this rank.
    """
    check_rank(problem.name, problem.weight.shape, problem.rank)
    A, B = balanced(*approximate(problem.wanted.to(torch.float64).numpy()))
    tensors = {"A": deployed(A, problem.dtype), "B": deployed(B, problem.dtype)}
    return measured("two_factor", tensors, problem.rank, problem.weight, problem.statistics)


def balanced(A: Matrix, B: Matrix) -> tuple[Matrix, Matrix]:
    """Scale column k of A and row k of B to norms within a factor of two, so that both fit half precision.

    The scales are powers of two, so the product stays exactly the same.
    """
    left, right = np.linalg.norm(A, axis=0), np.linalg.norm(B, axis=1)
    used = (left > 0) & (right > 0)
    ratio = np.divide(right, left, out=np.ones_like(left), where=used)
    scale = np.exp2(np.round(np.log2(ratio) / 2))
    return A * scale, B / scale[:, None]
