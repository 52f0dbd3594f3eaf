"""W ≈ C·U·R: real columns, a linking matrix, real rows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from curconvert.calibration.statistics import InputStatistics
from curconvert.factorization.gram import measured, ridged, solve_right
from curconvert.factorization.types import ErrorBound, Factorization
from curconvert.selection.indices import (
    Importance,
    Selection,
    Selector,
    importance_matrix,
    leading_rows,
    select_rows_columns,
)

Link = Literal["plain", "diagonal", "full"]
LINKS: tuple[str, ...] = get_args(Link)
Matrix = NDArray[np.float64]

_BOUND_MATRICES = {"wanda": "|W|∘a", "activation": "W∘a", "weight": "W"}


@dataclass(frozen=True)
class CUROptions:
    """How to choose C and R, and how to solve for U.

    Attributes:
        selector: Chooses rows and columns.
        importance: The matrix that the selector works on.
        link: Metric in which U is optimal: `plain` (Frobenius), `diagonal` (per-feature RMS), `full` (Gram matrix).
        ridge: λ of `H + λ diag(H)` in the full solve.
        seed: With the tensor's name, seeds the random selectors.
    """

    selector: Selector
    importance: Importance
    link: Link
    ridge: float
    seed: int


def tensor_rng(seed: int, name: str) -> np.random.Generator:
    """Return a generator that depends on the seed and the tensor's name alone, not on the order of work."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


def link_matrix(weight: Matrix, C: Matrix, R: Matrix, gram: Matrix | None) -> Matrix:
    """Solve `min_U ‖(W − C U R) H^½‖_F`: `U* = C⁺ W H Rᵀ (R H Rᵀ)⁺`.

    Args:
        weight: W, (m, n).
        C: (m, r).
        R: (r, n).
        gram: H, (n, n) symmetric positive semi-definite; None stands for the identity.

    Returns:
        U, (r, r). Rank-deficient C or R give the least-norm solution.
    """
    if gram is None:
        projected = weight @ scipy.linalg.pinv(R)
    else:
        weighted = gram @ R.T
        projected = solve_right(weight @ weighted, R @ weighted)
    link, *_ = scipy.linalg.lstsq(C, projected, check_finite=False)
    return np.asarray(link)


def _metric(statistics: InputStatistics, link: Link, ridge: float) -> Matrix | None:
    if link == "plain":
        return None
    if link == "diagonal":
        return np.diag(np.diag(statistics.gram))
    return ridged(statistics.gram, ridge)


def _select(name: str, W: Matrix, statistics: InputStatistics, rank: int, options: CUROptions) -> Selection:
    importance = importance_matrix(W, statistics.rms, options.importance)
    chosen = select_rows_columns(importance, rank, options.selector, tensor_rng(options.seed, name))
    if options.importance != "output":
        return chosen
    # What R keeps is outputs, and how well outputs predict one another depends on the whole Gram matrix.
    return replace(chosen, rows=leading_rows(W @ ridged(statistics.gram, options.ridge) @ W.T, rank))


def factorize_cur(
    name: str, weight: Tensor, statistics: InputStatistics, rank: int, options: CUROptions, dtype: torch.dtype
) -> Factorization:
    """Factorize one linear layer's weight.

    C and R are exact copies of the weight's columns and rows in the deployed dtype; U is solved in float64 for the
    factors as they are deployed.

    Args:
        name: Tensor name; seeds the random parts.
        weight: W, (m, n), any float dtype.
        statistics: Of the layer's input.
        rank: r ≤ min(m, n).
        options: Selection and link.
        dtype: Deployed dtype of C, U and R.
    """
    deployed = weight.to(dtype)
    W = weight.to(torch.float64).numpy()
    chosen = _select(name, W, statistics, rank, options)
    rows, columns = torch.from_numpy(chosen.rows), torch.from_numpy(chosen.columns)
    C, R = deployed[:, columns.long()].contiguous(), deployed[rows.long()].contiguous()
    U = torch.from_numpy(
        link_matrix(W, C.double().numpy(), R.double().numpy(), _metric(statistics, options.link, options.ridge))
    ).to(dtype)
    bound = None
    if chosen.eta_rows is not None and chosen.eta_columns is not None and chosen.sigma_next is not None:
        bound = ErrorBound(chosen.eta_rows, chosen.eta_columns, chosen.sigma_next, _BOUND_MATRICES[options.importance])
    tensors = {"C": C, "U": U, "R": R, "rows": rows, "cols": columns}
    return measured("cur", tensors, rank, W, statistics, bound=bound)
