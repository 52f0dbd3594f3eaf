"""Cost curves of modules (cost by size), and the choice of sizes under one parameter budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from curconvert.base.types import Vector
from curconvert_runtime.format.forms import form_of


@dataclass(frozen=True)
class Curve:
    """Lists the sizes at which one module can be stored, with their parameters and costs.

    A module is a single matrix, or several that share one size, such as the three matrices of an MLP.

    Attributes:
        forms: Form of each of its matrices, by weight name.
        sizes: Ranks, or numbers of neurons; (options,) descending. The first is 0 and means the dense matrices.
        parameters: Stored numbers, (options,).
        costs: Divergence that the size causes on its own, nats per token, (options,); 0 for dense, never falling.
    """

    forms: Mapping[str, str]
    sizes: tuple[int, ...]
    parameters: Vector
    costs: Vector

    @classmethod
    def of(cls, forms: Mapping[str, str], shapes: Sequence[tuple[int, int]], costs: Mapping[int, float]) -> Curve:
        """Build a curve.

        Args:
            forms: By weight name.
            shapes: (m, n) of each.
            costs: By size; the curve omits sizes that store at least as many numbers as the dense matrices.
        """
        dense = sum(m * n for m, n in shapes)
        numbers = {
            size: sum(form_of(form).parameters(shape, size) for form, shape in zip(forms.values(), shapes, strict=True))
            for size in costs
        }
        sizes = sorted((size for size in costs if numbers[size] < dense), reverse=True)
        # Costs are measured on a sample and noisy: a smaller size never counts as better than a larger one.
        rising = np.maximum.accumulate([0.0, *(costs[size] for size in sizes)])
        return cls(dict(forms), (0, *sizes), np.array([dense, *(numbers[size] for size in sizes)], float), rising)

    def to_json(self) -> dict[str, Any]:
        """Return the curve as JSON, without rounding."""
        return {
            "forms": dict(self.forms),
            "sizes": list(self.sizes),
            "parameters": self.parameters.tolist(),
            "costs": self.costs.tolist(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Curve:
        """Return the curve that `to_json` described."""
        return cls(value["forms"], tuple(value["sizes"]), np.array(value["parameters"]), np.array(value["costs"]))


def interpolated(costs: Mapping[int, float], whole: int, multiple: int) -> dict[int, float]:
    """Return the measured costs and, between them, interpolated costs for the multiples of a number.

    The interpolation is linear in the logarithms of the cost and of the dropped size.

    Args:
        costs: Measured costs, by size.
        whole: The full size.
        multiple: Interpolate at multiples of this number.
    """
    known = sorted((size for size in costs if costs[size] > 0), reverse=True)
    if len(known) < 2:
        return dict(costs)
    x, y = np.log(whole - np.array(known, float)), np.log([costs[size] for size in known])
    wanted = [size for size in range(multiple, whole, multiple) if known[-1] <= size <= known[0]]
    return dict(costs) | {
        size: float(np.exp(np.interp(math.log(whole - size), x, y))) for size in wanted if size not in costs
    }


def allocate(curves: Sequence[Curve], budget: float) -> list[int]:
    """Choose a size for each module, to minimize the summed cost in a parameter budget (Lagrangian water-filling).

    At a price per parameter, each module takes the size with the least `cost + price · parameters`. Bisection finds the
    price at which the sum fits. The rest of the budget goes to the steps that save most per parameter.

    Args:
        curves: Curves of all modules.
        budget: Numbers that all modules together may store.

    Returns:
        Index of the chosen option of each curve.

    Raises:
        ValueError: Even the smallest sizes exceed the budget.
    """
    if sum(float(curve.parameters.min()) for curve in curves) > budget:
        raise ValueError("the smallest sizes do not fit the budget")
    chosen = _at(curves, price_of(curves, budget))
    return _spend_rest(curves, chosen, budget - _stored(curves, chosen))


def price_of(curves: Sequence[Curve], budget: float) -> float:
    """Return the lowest price per parameter, nats per token, at which the modules together fit a budget."""
    low, high = 1e-18, 1e6
    for _ in range(120):
        price = math.sqrt(low * high)
        low, high = (price, high) if _stored(curves, _at(curves, price)) > budget else (low, price)
    return high


def _at(curves: Sequence[Curve], price: float) -> list[int]:
    return [int(np.argmin(curve.costs + price * curve.parameters)) for curve in curves]


def _stored(curves: Sequence[Curve], chosen: Sequence[int]) -> float:
    return sum(float(curve.parameters[index]) for curve, index in zip(curves, chosen, strict=True))


def _spend_rest(curves: Sequence[Curve], chosen: list[int], left: float) -> list[int]:
    """Move modules to larger sizes, the largest gain per parameter first, until no step fits the rest of the budget."""
    while True:
        best: tuple[float, int, int] | None = None
        for number, (curve, index) in enumerate(zip(curves, chosen, strict=True)):
            for larger in range(index):
                more = float(curve.parameters[larger] - curve.parameters[index])
                gain = float(curve.costs[index] - curve.costs[larger])
                if 0 < more <= left and gain > 0 and (best is None or gain / more > best[0]):
                    best = (gain / more, number, larger)
        if best is None:
            return chosen
        _, number, larger = best
        left -= float(curves[number].parameters[larger] - curves[number].parameters[chosen[number]])
        chosen[number] = larger
