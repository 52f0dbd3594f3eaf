"""Factorizes W ≈ C·U·R: columns of W, a linking matrix, rows of W. It can be stored in three forms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import scipy.linalg
import torch
from torch import Tensor

from curconvert.base.forms import Basis, traits_of
from curconvert.base.names import CPU
from curconvert.base.types import Matrix
from curconvert.factorization.interpolative import spanned
from curconvert.factorization.measured import deployed, measured
from curconvert.factorization.types import ErrorBound, Factorization, Problem
from curconvert.linalg.chunked import ChunkedMatrix
from curconvert.linalg.gram import least_squares, right_inverse, solve_right
from curconvert.linalg.metrics import DiagonalMetric, FullMetric
from curconvert.linalg.statistics import InputStatistics
from curconvert.options.choices import Importance, Link, Selector
from curconvert.selection.indices import (
    Metric,
    Selection,
    importance_matrix,
    leading_rows,
    select_rows_columns,
    tensor_rng,
)

_BOUND_MATRICES = {"wanda": "|W|∘a", "activation": "W∘a", "weight": "W"}


@dataclass(frozen=True)
class CUROptions:
    """Says how to choose C and R, and how to solve for U.

    Attributes:
        selector: Chooses rows and columns.
        importance: Which matrix the selector works on.
        link: Metric in which U is optimal: `plain` (Frobenius), `diagonal` (per-feature RMS), `full` (Gram matrix).
        ridge: λ of `H + λ diag(H)` in the full solve.
        seed: Seeds all random numbers, together with the tensor's name.
        exact_svd: See `select_rows_columns`.
        device: Where products with the weight are computed.
    """

    selector: Selector
    importance: Importance
    link: Link
    ridge: float
    seed: int
    exact_svd: bool = False
    device: str = CPU


def link_matrix(weight: ChunkedMatrix, C: Matrix, R: Matrix, metric: Metric | None) -> Matrix:
    """Solve `min_U ‖(W − C U R) H^½‖_F`: `U* = C⁺ W H Rᵀ (R H Rᵀ)⁺`.

    Args:
        weight: W, (m, n).
        C: (m, r).
        R: (r, n).
        metric: H, (n, n); None means the identity.

    Returns:
        U, (r, r). Rank-deficient C or R give the least-norm solution.
    """
    if metric is None:
        projected = weight.times(right_inverse(R))
    else:
        weighted = metric.times(R.T)
        projected = solve_right(weight.times(weighted), R @ weighted)
    return least_squares(C, projected)


def _metric(statistics: InputStatistics, options: CUROptions) -> Metric | None:
    if options.link == "plain":
        return None
    return DiagonalMetric(statistics) if options.link == "diagonal" else FullMetric(statistics, options.ridge)


def _select(name: str, weight: Tensor, statistics: InputStatistics, rank: int, options: CUROptions) -> Selection:
    importance = importance_matrix(weight, statistics.rms, options.importance)
    rng = tensor_rng(options.seed, name)
    chosen = select_rows_columns(importance, rank, options.selector, rng, exact_svd=options.exact_svd)
    if options.importance != "output":
        return chosen
    # R keeps outputs, and how well they predict one another depends on the whole Gram matrix.
    rows = leading_rows(ChunkedMatrix(weight), FullMetric(statistics, options.ridge), rank, rng)
    return replace(chosen, rows=rows)


def factorize_cur(problem: Problem, options: CUROptions) -> Factorization:
    """Factorize one linear layer's weight.

    C and R are exact copies of the weight's columns and rows in the deployed dtype. U is solved in float64 for these
    rounded factors. The forms other than `cur` store products, computed before U is rounded.

    Args:
        problem: The matrix and its form: `cur`; `two_factor` with A = C·U and B = R; or `interpolative`, which can
            store any matrix of this rank.
        options: Selection and link.
    """
    name, weight, statistics, rank, dtype = (
        problem.name, problem.weight, problem.statistics, problem.rank, problem.dtype,
    )  # fmt: skip
    stored, placed = weight.to(dtype), weight.to(options.device)
    chosen = _select(name, placed, statistics, rank, options)
    rows, columns = torch.from_numpy(chosen.rows), torch.from_numpy(chosen.columns)
    C, R = stored[:, columns.long()].contiguous(), stored[rows.long()].contiguous()
    wanted = ChunkedMatrix(placed if problem.target is None else problem.target.to(options.device))
    link = link_matrix(wanted, C.double().numpy(), R.double().numpy(), _metric(statistics, options))
    bound = None
    if chosen.eta_rows is not None and chosen.eta_columns is not None and chosen.sigma_next is not None:
        bound = ErrorBound(chosen.eta_rows, chosen.eta_columns, chosen.sigma_next, _BOUND_MATRICES[options.importance])
    tensors = _STORED[problem.form](_Product(C, link, R, rows, columns), dtype)
    basis: Basis | None = "subspace" if traits_of(problem.form).has_basis else None
    return measured(problem.form, tensors, rank, weight, statistics, bound=bound, basis=basis)


class _Product(NamedTuple):
    """Holds C·U·R, with C and R in the deployed dtype, and the indices of their columns and rows."""

    C: Tensor
    U: Matrix
    R: Tensor
    rows: Tensor
    columns: Tensor


def _as_it_is(product: _Product, dtype: torch.dtype) -> dict[str, Tensor]:
    U = deployed(product.U, dtype)
    return {"C": product.C, "U": U, "R": product.R, "rows": product.rows, "cols": product.columns}


def _folded(product: _Product, dtype: torch.dtype) -> dict[str, Tensor]:
    return {"A": deployed(product.C.double().numpy() @ product.U, dtype), "B": product.R}


def _interpolated(product: _Product, dtype: torch.dtype) -> dict[str, Tensor]:
    basis, triangle = scipy.linalg.qr(product.C.double().numpy() @ product.U, mode="economic", check_finite=False)
    return spanned(basis, triangle @ product.R.double().numpy(), dtype)


_STORED = {"cur": _as_it_is, "two_factor": _folded, "interpolative": _interpolated}
"""What is stored of a product, by the form's name."""
