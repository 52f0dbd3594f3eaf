"""Chooses int4 or int8 for each matrix, from the cost of rounding at both widths and a budget of bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from curconvert.base.types import Matrix, Vector
from curconvert.quantization.tasks import QuantizationTask
from curconvert_runtime.format.quantized import BITS


@dataclass(frozen=True)
class RoundingCost:
    """Holds the cost of rounding a matrix at each width in `curconvert_runtime.format.quantized.BITS`, narrowest first.

    Attributes:
        name: Weight name.
        errors: Relative errors: of the outputs, or of the weights if no inputs are known.
        costs: The costs that the choice minimizes, see `curconvert.jobs.bits`.
    """

    name: str
    errors: tuple[float, ...]
    costs: tuple[float, ...]

    def to_json(self, bits: int | None = None) -> dict[str, Any]:
        """Return errors and costs as JSON, and the chosen bits if given."""
        chosen = {} if bits is None else {"bits": bits}
        return {"name": self.name, **chosen, "errors": _by_type(self.errors), "costs": _by_type(self.costs)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RoundingCost:
        """Return the costs that `to_json` described."""
        errors, costs = (tuple(value[key][f"int{bits}"] for bits in BITS) for key in ("errors", "costs"))
        return cls(value["name"], errors, costs)


def _by_type(values: Sequence[float]) -> dict[str, float]:
    return {f"int{bits}": value for bits, value in zip(BITS, values, strict=True)}


@dataclass(frozen=True)
class RoundingTask:
    """Quantizes one matrix at each width and measures the cost.

    Attributes:
        tasks: One for each width, the narrowest first.
        importance: Cost of a unit mean square error of each output, (m,).
    """

    tasks: Sequence[QuantizationTask]
    importance: Vector

    def run(self) -> RoundingCost:
        """Return the costs, which include the truncation of a compressed matrix; raises as `QuantizationTask`."""
        errors, costs = [], []
        for task in self.tasks:
            ((name, found),) = task.run().items()
            lost = task.projection.weight.double().numpy() - found.product().numpy()
            errors.append(found.relative_output_error)
            costs.append(weighted(lost, task.projection.metric.gram, self.importance))
        return RoundingCost(name, tuple(errors), tuple(costs))


def weighted(lost: Vector, gram: Matrix, importance: Vector) -> float:
    """Return `Σ c_i e_i H e_iᵀ` over the rows of an error, (m, n)."""
    return float(importance @ np.einsum("ij,ij->i", lost @ gram, lost))


def chosen_bits(
    measured: Sequence[RoundingCost],
    sizes: Mapping[str, Sequence[int]],
    together: Sequence[Sequence[str]],
    budget: float,
) -> dict[str, int]:
    """Choose the bits of each matrix: the wider width goes to the largest savings per added bit, within the budget.

    Args:
        measured: The costs of every quantized matrix.
        sizes: Bits that each matrix takes at each width, by name, the narrowest first.
        together: Groups of matrices that must have one width, because they share a stored factor.
        budget: Most bits for all matrices together; they must fit at the narrowest width.

    Returns:
        Bits by name.
    """
    costs = {found.name: found.costs for found in measured}
    joint = [tuple(names) for names in together]
    groups = joint + [(name,) for name in costs if not any(name in names for names in joint)]

    def change(names: Sequence[str], values: Mapping[str, Sequence[float]]) -> float:
        return sum(values[name][-1] - values[name][0] for name in names)

    left = budget - sum(sizes[name][0] for name in costs)
    widths = dict.fromkeys(costs, BITS[0])
    for names in sorted(groups, key=lambda names: (change(names, costs) / max(change(names, sizes), 1), names)):
        if change(names, costs) <= 0 and change(names, sizes) <= left:
            left -= change(names, sizes)
            widths |= dict.fromkeys(names, BITS[-1])
    return widths
