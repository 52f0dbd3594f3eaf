"""Which layers: the angular distance by its definition, and every form of --layers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from curconvert.errors import InputError
from curconvert.selection.layers import angular_distance, layer_count, select_layers


def test_distances_are_mean_angles_over_pi() -> None:
    """The definition, sequence by sequence."""
    rng = np.random.default_rng(0)
    before, after = rng.standard_normal((2, 3, 8))
    angles = []
    for a, b in zip(before, after, strict=True):
        angles.append(math.acos(float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))) / math.pi)
    assert angular_distance(before, after) == pytest.approx(sum(angles) / 3, rel=1e-9)


def test_equal_and_opposite_states_lie_at_the_ends_of_the_scale() -> None:
    """Rounding past ±1 is clipped, so that no distance is nan."""
    state = np.full((1, 5), 0.1)
    assert angular_distance(state, state * 3) == pytest.approx(0.0, abs=1e-7)
    assert angular_distance(state, state * -7) == pytest.approx(1.0, abs=1e-7)


def test_a_state_of_zeros_gives_a_finite_distance() -> None:
    """A dead layer is no division by zero."""
    assert np.isfinite(angular_distance(np.zeros((2, 4)), np.zeros((2, 4))))


def test_angular_takes_the_smallest_distances_but_never_the_ends() -> None:
    """The first and the last layer are no candidates, however small their distance."""
    distances = np.array([np.nan, 0.5, 0.1, 0.4, 0.2, 0.0])
    assert select_layers("angular:2", 6, distances) == (2, 4)
    assert select_layers("angular:4", 6, distances) == (1, 2, 3, 4)


@pytest.mark.parametrize("layers, count", [(32, 10), (30, 9), (3, 1), (2, 0), (1, 0)])
def test_the_default_share_is_the_papers(layers: int, count: int) -> None:
    """Ten of 32 layers, as many as there are candidates in a small model."""
    assert layer_count("angular", layers) == count


@pytest.mark.parametrize(
    "spec, expected",
    [
        ("all", (0, 1, 2, 3, 4, 5)),
        ("0", (0,)),
        ("5,1", (1, 5)),
        ("1-3", (1, 2, 3)),
        ("1-3,2, 5", (1, 2, 3, 5)),
        ("2-2", (2,)),
    ],
)
def test_explicit_layers(spec: str, expected: tuple[int, ...]) -> None:
    """Numbers and ranges, in any order, with repetition."""
    assert select_layers(spec, 6) == expected
    assert layer_count(spec, 6) == len(expected)


@pytest.mark.parametrize(
    "spec",
    ["", ",", "1,", "x", "-1", "1-", "3-1", "6", "0-6", "1.5", "angular:", "angular:0", "angular:5", "angular:-1",
     "angular:x", "angular:1:2", "angularx", "ALL", "all,1", "1--2", "9" * 5000, "angular:" + "9" * 5000],
)  # fmt: skip
def test_malformed_or_empty_choices_are_refused(spec: str) -> None:
    """The message quotes the option."""
    with pytest.raises(InputError, match="--layers"):
        layer_count(spec, 6)
