"""What rounding costs at each width, and the choice within a budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from curconvert.factorization.projection import Projection
from curconvert.factorization.types import Factorization
from curconvert.linalg.statistics import InputStatistics
from curconvert.options.quantization import Quantization
from curconvert.quantization.bits import RoundingCost, RoundingTask, chosen_bits
from curconvert.quantization.tasks import QuantizationTask

NAMES = tuple("abcdefg")


def drawn(seed: int) -> list[RoundingCost]:
    """Draw costs: 8 bits are always better."""
    rng = np.random.default_rng(seed)
    return [
        RoundingCost(name, (0.1, 0.01), (float(cost), float(cost) / 100))
        for name, cost in zip(NAMES, rng.random(7), strict=True)
    ]


def cost(measured: list[RoundingCost], widths: dict[str, int]) -> float:
    """Sum what was chosen."""
    return sum(found.costs[widths[found.name] == 8] for found in measured)


@pytest.mark.parametrize("seed", range(4))
def test_no_other_choice_of_equal_matrices_costs_less(seed: int) -> None:
    """Found by trying all of them."""
    measured, sizes = drawn(seed), dict.fromkeys(NAMES, (4, 8))
    found = chosen_bits(measured, sizes, (), 41)
    assert sum(found.values()) == 40
    choices = (dict(zip(NAMES, bits, strict=True)) for bits in itertools.product((4, 8), repeat=7) if sum(bits) <= 41)
    assert cost(measured, found) == pytest.approx(min(cost(measured, choice) for choice in choices))


def test_a_bit_is_spent_where_it_saves_most() -> None:
    """Of two that save the same, on the smaller one; one that does not fit leaves room for the next."""
    measured = [RoundingCost(name, (1.0, 0.0), (saved, 0.0)) for name, saved in (("a", 6.0), ("b", 6.0), ("c", 1.0))]
    sizes = {"a": (40, 80), "b": (4, 8), "c": (4, 8)}
    assert chosen_bits(measured, sizes, (), 52) == {"a": 4, "b": 8, "c": 4}
    assert chosen_bits(measured, sizes, (), 56) == {"a": 4, "b": 8, "c": 8}
    assert chosen_bits(measured, sizes, (), 96) == dict.fromkeys("abc", 8)
    assert chosen_bits(measured, sizes, (), 48) == dict.fromkeys("abc", 4)


def test_two_matrices_with_a_common_factor_have_one_width() -> None:
    """Both are widened, or neither."""
    measured = [RoundingCost(name, (1.0, 0.0), (saved, 0.0)) for name, saved in (("a", 9.0), ("b", 0.1), ("c", 4.6))]
    sizes = dict.fromkeys("abc", (4, 8))
    assert chosen_bits(measured, sizes, [("a", "b")], 16) == {"a": 4, "b": 4, "c": 8}
    assert chosen_bits(measured, sizes, [("a", "b")], 20) == {"a": 4, "b": 4, "c": 8}
    assert chosen_bits(measured, sizes, [("a", "b")], 24) == dict.fromkeys("abc", 8)


def test_an_error_costs_what_its_outputs_do_to_the_loss() -> None:
    """Summed over the inputs themselves, output by output; relative errors are those of the outputs."""
    rng = np.random.default_rng(0)
    inputs, weight, importance = rng.standard_normal((200, 32)), rng.standard_normal((8, 32)), rng.random(8)
    statistics = InputStatistics(inputs.T @ inputs / 200, 200, inputs.mean(axis=0))
    tensor = torch.from_numpy(weight)
    factors, projection = (
        Factorization("dense", (8, 32), {"weight": tensor}, 0, 0.0, 0.0),
        Projection(tensor, statistics),
    )
    tasks = [
        QuantizationTask("w", factors, projection, Quantization(kind, 32), torch.float32, 1e-2)
        for kind in ("int4", "int8")
    ]
    found = RoundingTask(tasks, importance).run()
    for task, error, price in zip(tasks, found.errors, found.costs, strict=True):
        lost = inputs @ (weight - task.run()["w"].tensors["weight"].double().numpy()).T
        assert price == pytest.approx(float((lost**2).mean(axis=0) @ importance), rel=1e-9)
        assert error == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(inputs @ weight.T), rel=1e-6)
    assert RoundingCost.from_json(found.to_json()) == found
