"""What every factorization method returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Form = Literal["dense", "cur"]


@dataclass(frozen=True)
class ErrorBound:
    """The DEIM certificate `‖S − CUR‖₂ ≤ (η_p + η_q) σ_{r+1}` (Sorensen & Embree, arXiv 1407.5516, theorem 4.1).

    Attributes:
        eta_rows: `‖P[rows]⁻¹‖₂`.
        eta_columns: `‖Q[columns]⁻¹‖₂`.
        sigma_next: σ_{r+1} of `matrix`.
        matrix: The matrix S that DEIM worked on; the bound is about this matrix and no other.
    """

    eta_rows: float
    eta_columns: float
    sigma_next: float
    matrix: str

    @property
    def value(self) -> float:
        """The bound itself."""
        return (self.eta_rows + self.eta_columns) * self.sigma_next


@dataclass(frozen=True)
class Factorization:
    """A compressed matrix.

    Attributes:
        form: How the factors combine.
        tensors: Stored tensors by suffix; for `cur`: `C` (m, r), `U` (r, r), `R` (r, n) in the deployed dtype,
            `rows` and `cols` (r,) int32.
        relative_output_error: `‖(W − Ŵ) H^½‖_F / ‖W H^½‖_F`.
        relative_frobenius_error: `‖W − Ŵ‖_F / ‖W‖_F`.
        bound: Where the method certifies one.
    """

    form: Form
    tensors: Mapping[str, Tensor]
    relative_output_error: float
    relative_frobenius_error: float
    bound: ErrorBound | None = None

    @property
    def rank(self) -> int:
        """Rank of the approximation."""
        return int(self.tensors["U"].shape[0])

    def product(self) -> Tensor:
        """Multiply the stored factors out, (m, n) float64."""
        c, u, r = (self.tensors[key].to(torch.float64) for key in ("C", "U", "R"))
        return c @ u @ r


def cur_parameters(shape: tuple[int, int], rank: int) -> int:
    """Stored numbers of C, U and R together: r(m + n) + r² (indices are not parameters)."""
    return rank * (shape[0] + shape[1]) + rank * rank


def break_even_rank(shape: tuple[int, int]) -> int:
    """Largest rank at which C, U and R hold no more numbers than W (CURing, §3.2): r(m+n) + r² ≤ mn."""
    m, n = shape
    rank = int(((m * m + 6 * m * n + n * n) ** 0.5 - (m + n)) / 2)
    while rank and cur_parameters(shape, rank) > m * n:  # the float root may be one too high
        rank -= 1
    return rank
