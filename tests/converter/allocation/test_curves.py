"""Water-filling over small curves, against trying everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curconvert.allocation.curves import Curve, allocate, interpolated


def curve(parameters: list[float], costs: list[float]) -> Curve:
    """Return a curve with made-up sizes."""
    return Curve({"w": "interpolative"}, tuple(range(len(costs))), np.array(parameters), np.array(costs))


@st.composite
def curves(draw: st.DrawFn) -> list[Curve]:
    """Some modules whose costs rise as they shrink, convexly."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        steps = sorted(draw(st.lists(st.floats(0.01, 10), min_size=2, max_size=4)))
        width = draw(st.integers(1, 9))
        found.append(
            curve([float(width * (len(steps) + 1 - n)) for n in range(len(steps) + 1)], [0.0, *np.cumsum(steps)])
        )
    return found


@settings(max_examples=200)
@given(curves(), st.floats(0, 1))
def test_it_fits_and_is_nearly_the_best(modules: list[Curve], share: float) -> None:
    """Never over the budget; worse than the best by at most one step of one module."""
    least = sum(float(c.parameters.min()) for c in modules)
    most = sum(float(c.parameters[0]) for c in modules)
    budget = least + share * (most - least)
    chosen = allocate(modules, budget)
    stored = sum(float(c.parameters[i]) for c, i in zip(modules, chosen, strict=True))
    assert stored <= budget + 1e-6
    spent = sum(float(c.costs[i]) for c, i in zip(modules, chosen, strict=True))
    best = min(
        sum(float(c.costs[i]) for c, i in zip(modules, option, strict=True))
        for option in itertools.product(*(range(len(c.costs)) for c in modules))
        if sum(float(c.parameters[i]) for c, i in zip(modules, option, strict=True)) <= budget + 1e-9
    )
    assert spent <= best + max(float(np.diff(c.costs).max()) for c in modules) + 1e-9


def test_the_whole_budget_keeps_everything_dense() -> None:
    """Nothing is compressed without need."""
    modules = [curve([10, 5], [0, 1]), curve([20, 8], [0, 1])]
    assert allocate(modules, 30) == [0, 0]


def test_too_small_a_budget() -> None:
    """Is an error of the caller's."""
    with pytest.raises(ValueError, match="budget"):
        allocate([curve([10, 5], [0, 1])], 4)


def test_sizes_that_save_nothing_are_no_options() -> None:
    """And a noisy sample never makes a smaller size look better."""
    found = Curve.of({"w": "two_factor"}, [(8, 8)], {6: 0.1, 3: 0.5, 2: 0.4, 1: 0.9})
    assert found.sizes == (0, 3, 2, 1)
    assert found.parameters.tolist() == [64, 48, 32, 16]
    assert found.costs.tolist() == [0, 0.5, 0.5, 0.9]


def test_interpolation_meets_what_was_measured() -> None:
    """A power law between two sizes is a straight line of logarithms."""
    found = interpolated({90: 0.01, 60: 0.16}, whole=100, multiple=10)
    assert found[90] == 0.01
    assert found[80] == pytest.approx(0.04)
    assert sorted(found) == [60, 70, 80, 90]
