"""Types of the factorization methods: their input, their result, and the task that computes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from curconvert.base.forms import Basis, Traits, traits_of
from curconvert.execution.task import Task
from curconvert.linalg.statistics import InputStatistics
from curconvert_runtime.format.forms import form_of
from curconvert_runtime.format.forms.form import Form


@dataclass(frozen=True)
class ErrorBound:
    """Holds the DEIM certificate `‖S − CUR‖₂ ≤ (η_p + η_q) σ_{r+1}` (Sorensen & Embree, arXiv 1407.5516, theorem 4.1).

    Attributes:
        eta_rows: `‖P[rows]⁻¹‖₂`.
        eta_columns: `‖Q[columns]⁻¹‖₂`.
        sigma_next: σ_{r+1} of `matrix`.
        matrix: Which matrix S DEIM worked on; the bound is valid for this matrix only.
    """

    eta_rows: float
    eta_columns: float
    sigma_next: float
    matrix: str

    @property
    def value(self) -> float:
        """The bound, `(η_p + η_q) σ_{r+1}`."""
        return (self.eta_rows + self.eta_columns) * self.sigma_next


@dataclass(frozen=True)
class Problem:
    """Describes one matrix to factorize.

    Attributes:
        name: Tensor name, for messages and seeds.
        weight: W, (m, n), any float dtype.
        statistics: Statistics of the layer's input; they define the metric of errors.
        rank: 1 ≤ r ≤ min(m, n).
        dtype: Deployed dtype of the factors.
        form: Name of the form in which the factors are stored.
        target: The matrix to approximate, (m, n), any float dtype; None means the weight.
    """

    name: str
    weight: Tensor
    statistics: InputStatistics
    rank: int
    dtype: torch.dtype
    form: str
    target: Tensor | None = None

    @property
    def wanted(self) -> Tensor:
        """The matrix to approximate, (m, n), any float dtype."""
        return self.weight if self.target is None else self.target


@dataclass(frozen=True)
class Factorization:
    """Holds the factors of one matrix and their errors.

    Attributes:
        form: Name of the form, which says how the factors combine.
        shape: (m, n) of the matrix.
        tensors: Stored tensors by suffix, as `curconvert_runtime.format.forms` lists them: factors in the deployed
            dtype, index vectors in int32; and `bias` if it differs from the layer's.
        rank: r.
        relative_output_error: `sqrt(E‖(W x + b) − (Ŵ x + b')‖² / E‖W x‖²)`; with an unchanged bias this is
            `‖(W − Ŵ) H^½‖_F / ‖W H^½‖_F`.
        relative_frobenius_error: `‖W − Ŵ‖_F / ‖W‖_F`.
        bound: The error bound; None if the method certifies none.
        basis: Kind of basis, for the forms `interpolative` and `sparse_rows`.
        corrected_bias: Whether the stored bias corrects the mean of the error.
        teacher_share: Share of the difference from the original's inputs that the factors correct, see
            `curconvert.factorization.drift`; None if inputs were not compared.
    """

    form: str
    shape: tuple[int, int]
    tensors: Mapping[str, Tensor]
    rank: int
    relative_output_error: float
    relative_frobenius_error: float
    bound: ErrorBound | None = None
    basis: Basis | None = None
    corrected_bias: bool = False
    teacher_share: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return everything except the tensors as JSON, without rounding."""
        return asdict(replace(self, tensors={}))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Factorization:
        """Return the factorization that `to_json` described, without tensors."""
        m, n = value["shape"]
        bound = value["bound"]
        return cls(**{**value, "shape": (m, n), "bound": None if bound is None else ErrorBound(**bound)})

    @property
    def entry(self) -> Form:
        """The form's entry in the runtime's registry."""
        return form_of(self.form)

    @property
    def traits(self) -> Traits:
        """The form's properties that a conversion needs."""
        return traits_of(self.form)

    def product(self) -> Tensor:
        """Multiply the stored factors out, (m, n) float64."""
        return torch.from_numpy(self.entry.multiply(self.shape, arrays(self.tensors)))


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Return tensors as arrays: floats as float64, index vectors unchanged."""
    return {
        suffix: (tensor.to(torch.float64) if tensor.is_floating_point() else tensor).numpy()
        for suffix, tensor in tensors.items()
    }


FactorTask = Task[dict[str, Factorization]]
"""A task that returns factors by weight name."""
