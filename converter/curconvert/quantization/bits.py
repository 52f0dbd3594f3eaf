"""Chooses the bits of each matrix, from the cost of rounding at every width and a budget of bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    """Choose the bits of each matrix: added bits go to the largest savings per bit, within the budget.

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
    steps = [step for names in groups for step in _steps(names, sizes, costs)]
    left = budget - sum(sizes[name][0] for name in costs)
    widths, closed = dict.fromkeys(costs, BITS[0]), set()
    for step in sorted(steps, key=lambda step: (step.slope, step.names, step.width)):
        if step.size > left or step.names in closed:
            closed.add(step.names)  # the next step of this group starts where this one ends
            continue
        left -= step.size
        widths |= dict.fromkeys(step.names, step.width)
    return widths


@dataclass(frozen=True)
class _Step:
    """Widens a group of matrices to `width`: `size` more bits, each of which changes the cost by `slope`."""

    names: tuple[str, ...]
    width: int
    size: int
    slope: float


def _steps(
    names: tuple[str, ...], sizes: Mapping[str, Sequence[int]], costs: Mapping[str, Sequence[float]]
) -> Iterator[_Step]:
    """Yield the steps from the narrowest width along the lower convex hull of sizes and costs; none raises the cost."""
    points = [tuple(sum(values[name][i] for name in names) for values in (sizes, costs)) for i in range(len(BITS))]
    here = 0
    while here + 1 < len(BITS):
        size, cost = points[here]
        further = range(here + 1, len(BITS))
        slope, negative = min(((points[i][1] - cost) / max(points[i][0] - size, 1), -i) for i in further)
        if slope > 0:
            return
        yield _Step(names, BITS[-negative], int(points[-negative][0] - size), slope)
        here = -negative
