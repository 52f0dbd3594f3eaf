"""What every factorization method returns."""

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
class Problem:
    """One matrix to factorize.

    Attributes:
        name: Tensor name, for messages and seeds.
        weight: W, (m, n), any float dtype.
        statistics: Of the layer's input: the metric in which errors count.
        rank: 1 ≤ r ≤ min(m, n).
        dtype: Deployed dtype of the factors.
        form: How they are to be stored.
        target: What the product shall be near, (m, n), any float dtype; None is the weight.
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
        """What the product shall be near, (m, n), any float dtype."""
        return self.weight if self.target is None else self.target


@dataclass(frozen=True)
class Factorization:
    """A compressed matrix.

    Attributes:
        form: Name of how the factors combine.
        shape: (m, n) of the matrix.
        tensors: Stored tensors by suffix, as `curconvert_runtime.format.forms` lists them: factors in the
            deployed dtype, index vectors in int32; and `bias` where it is another than the layer's.
        rank: r.
        relative_output_error: `sqrt(E‖(W x + b) − (Ŵ x + b')‖² / E‖W x‖²)`; where the bias b is kept that is
            `‖(W − Ŵ) H^½‖_F / ‖W H^½‖_F`.
        relative_frobenius_error: `‖W − Ŵ‖_F / ‖W‖_F`.
        bound: Where the method certifies one.
        basis: Of the forms `interpolative` and `sparse_rows`.
        corrected_bias: Whether the stored bias makes up for the mean of what is lost.
        teacher_share: Where the inputs come from compressed blocks and were compared with the original's: how much of
            the difference the factors make up for, see `curconvert.factorization.drift`.
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
        """Return all but the tensors as JSON, exactly."""
        return asdict(replace(self, tensors={}))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Factorization:
        """Read it back, without tensors."""
        m, n = value["shape"]
        bound = value["bound"]
        return cls(**{**value, "shape": (m, n), "bound": None if bound is None else ErrorBound(**bound)})

    @property
    def entry(self) -> Form:
        """What the registry says of the form."""
        return form_of(self.form)

    @property
    def traits(self) -> Traits:
        """What a conversion asks of the form."""
        return traits_of(self.form)

    def product(self) -> Tensor:
        """Multiply the stored factors out, (m, n) float64."""
        return torch.from_numpy(self.entry.multiply(self.shape, arrays(self.tensors)))


def arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Return tensors as arrays: float64, and index vectors as they are."""
    return {
        suffix: (tensor.to(torch.float64) if tensor.is_floating_point() else tensor).numpy()
        for suffix, tensor in tensors.items()
    }


FactorTask = Task[dict[str, Factorization]]
"""A task that gives factors by weight name."""
