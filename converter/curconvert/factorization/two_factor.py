"""W ≈ A·B: two thin products, for comparison and for runtimes without a gather."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from curconvert.base.types import Matrix, Vector
from curconvert.factorization.low_rank import asvd, fwsvd, plain, svd_llm
from curconvert.factorization.measured import check_rank, deployed, measured
from curconvert.factorization.types import Factorization
from curconvert.linalg.metrics import FullMetric
from curconvert.linalg.statistics import InputStatistics
from curconvert.options.choices import Approximation


def factorize_two_factor(
    name: str,
    weight: Tensor,
    statistics: InputStatistics,
    rank: int,
    approximation: Approximation,
    ridge: float,
    dtype: torch.dtype,
    fisher_rows: Vector | None = None,
    target: Tensor | None = None,
) -> Factorization:
    """Factorize one linear layer's weight into two thin factors.

    Args:
        name: Tensor name, for messages.
        weight: W, (m, n), any float dtype.
        statistics: Of the layer's input.
        rank: 1 ≤ r ≤ min(m, n).
        approximation: Which rank-r approximation of W to store, see `low_rank`.
        ridge: λ of `H + λ diag(H)`; `svd_llm` only.
        dtype: Deployed dtype of A and B.
        fisher_rows: f, (m,), Fisher information of each row of W; `fwsvd` only, which needs it.
        target: What A·B shall be near, (m, n), any float dtype; None is the weight.

    Raises:
        InputError: No (m, n) matrix has this rank.
    """
    check_rank(name, weight.shape, rank)
    W = (weight if target is None else target).to(torch.float64).numpy()
    if approximation == "svd_llm":
        A, B = svd_llm(W, FullMetric(statistics, ridge), rank)
    elif approximation == "asvd":
        A, B = asvd(W, statistics.rms, rank)
    elif approximation == "fwsvd":
        assert fisher_rows is not None
        A, B = fwsvd(W, fisher_rows, rank)
    else:
        A, B = plain(W, rank)
    A, B = balanced(A, B)
    return measured("two_factor", {"A": deployed(A, dtype), "B": deployed(B, dtype)}, rank, weight, statistics)


def balanced(A: Matrix, B: Matrix) -> tuple[Matrix, Matrix]:
    """Give column k of A and row k of B norms within a factor of two, so that neither leaves half precision's range.

    The scales are powers of two: the product does not change by a bit.
    """
    left, right = np.linalg.norm(A, axis=0), np.linalg.norm(B, axis=1)
    used = (left > 0) & (right > 0)
    ratio = np.divide(right, left, out=np.ones_like(left), where=used)
    scale = np.exp2(np.round(np.log2(ratio) / 2))
    return A * scale, B / scale[:, None]
