"""What each size of a module costs, and which sizes to take under one budget."""

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
    """The sizes at which one module can be stored.

    A module is what shares one size: a single matrix, or the three matrices of an MLP.

    Attributes:
        forms: Form of each of its matrices, by weight name.
        sizes: Ranks, or numbers of neurons; (options,) descending. The first stands for the dense matrices.
        parameters: Stored numbers, (options,).
        costs: Divergence that the size causes by itself, nats per token, (options,); 0 for dense, never falling.
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
            costs: By size; sizes that store no fewer numbers than the dense matrices are left out.
        """
        dense = sum(m * n for m, n in shapes)
        numbers = {
            size: sum(form_of(form).parameters(shape, size) for form, shape in zip(forms.values(), shapes, strict=True))
            for size in costs
        }
        sizes = sorted((size for size in costs if numbers[size] < dense), reverse=True)
        # Measured on a sample, so noisy: a smaller size is never taken to be better than a larger one.
        rising = np.maximum.accumulate([0.0, *(costs[size] for size in sizes)])
        return cls(dict(forms), (0, *sizes), np.array([dense, *(numbers[size] for size in sizes)], float), rising)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON, exactly."""
        return {
            "forms": dict(self.forms),
            "sizes": list(self.sizes),
            "parameters": self.parameters.tolist(),
            "costs": self.costs.tolist(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Curve:
        """Read it back."""
        return cls(value["forms"], tuple(value["sizes"]), np.array(value["parameters"]), np.array(value["costs"]))


def interpolated(costs: Mapping[int, float], whole: int, multiple: int) -> dict[int, float]:
    """Fill in the multiples of a number between measured sizes: log cost over log of what is dropped.

    Args:
        costs: By size, measured.
        whole: The full size.
        multiple: Sizes wanted.
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
    """Choose a size of each module: the least summed cost within a budget of parameters (Lagrangian water-filling).

    For a price per parameter each module takes the size of the least `cost + price · parameters`; the price is bisected
    until the sum fits, and what is left of the budget goes to the steps that save most per parameter.

    Args:
        curves: Of all modules.
        budget: Numbers that they may store together.

    Returns:
        Index of the chosen option of each curve.

    Raises:
        ValueError: The smallest sizes together do not fit.
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
    """Grow modules by whole options, best first, while the rest of the budget lasts."""
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
