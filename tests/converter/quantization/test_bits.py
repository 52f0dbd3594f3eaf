"""What rounding costs at each width, and the choice within a budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from curconvert.factorization.projection import Projection
from curconvert.factorization.types import Factorization
from curconvert.linalg.statistics import InputStatistics
from curconvert.options.quantization import TYPES, Quantization
from curconvert.quantization.bits import RoundingCost, RoundingTask, chosen_bits
from curconvert.quantization.tasks import QuantizationTask
from curconvert_runtime.format.quantized import BITS

NAMES = tuple("abcde")


def drawn(seed: int) -> tuple[list[RoundingCost], dict[str, tuple[int, ...]]]:
    """Draw costs and sizes: more bits are always larger and better, but not evenly so."""
    rng = np.random.default_rng(seed)
    costs = {name: np.cumsum(rng.exponential(4.0 ** -np.arange(len(BITS))))[::-1] for name in NAMES}
    sizes = {name: tuple(np.cumsum(rng.integers(1, 9, len(BITS))).tolist()) for name in NAMES}
    return [RoundingCost(name, (0.1,) * len(BITS), tuple(map(float, found))) for name, found in costs.items()], sizes


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", [30, 60, 100])
def test_no_other_choice_of_its_size_costs_less(seed: int, budget: int) -> None:
    """Found by trying all of them; what is left is too little for one more step."""
    measured, sizes = drawn(seed)
    least = sum(size[0] for size in sizes.values())
    found = chosen_bits(measured, sizes, (), least + budget)
    places = [BITS.index(found[name]) for name in NAMES]
    total = sum(sizes[name][place] for name, place in zip(NAMES, places, strict=True))
    steps = max(size[-1] - size[0] for size in sizes.values())
    assert least + budget - steps < total <= least + budget
    cost = sum(row.costs[place] for row, place in zip(measured, places, strict=True))
    tables = [list(zip(sizes[row.name], row.costs, strict=True)) for row in measured]
    room = least + budget - steps
    others = (tuple(map(sum, zip(*choice, strict=True))) for choice in itertools.product(*tables))
    assert cost <= min((price for size, price in others if size <= room), default=np.inf) + 1e-12


def at(*saved: tuple[str, float]) -> list[RoundingCost]:
    """Return costs that only the widest width saves."""
    return [RoundingCost(name, (1.0,) * 5 + (0.0,), (cost,) * 5 + (0.0,)) for name, cost in saved]


def sized(narrow: int, wide: int) -> tuple[int, ...]:
    """Return sizes of which only the last is larger."""
    return (narrow,) * (len(BITS) - 1) + (wide,)


def test_a_bit_is_spent_where_it_saves_most() -> None:
    """Of two that save the same, on the smaller one; one that does not fit leaves room for the next."""
    measured = at(("a", 6.0), ("b", 6.0), ("c", 1.0))
    sizes = {"a": sized(40, 80), "b": sized(4, 8), "c": sized(4, 8)}
    assert chosen_bits(measured, sizes, (), 52) == {"a": 3, "b": 8, "c": 3}
    assert chosen_bits(measured, sizes, (), 56) == {"a": 3, "b": 8, "c": 8}
    assert chosen_bits(measured, sizes, (), 96) == dict.fromkeys("abc", 8)
    assert chosen_bits(measured, sizes, (), 48) == dict.fromkeys("abc", 3)


def test_a_width_between_is_chosen_where_it_saves_most_per_bit() -> None:
    """And one above the line between its neighbors never is."""
    measured = [RoundingCost("a", (1.0,) * 6, (10.0, 9.0, 1.0, 0.9, 0.2, 0.1))]
    sizes = {"a": (3, 4, 5, 6, 7, 8)}
    assert [chosen_bits(measured, sizes, (), budget)["a"] for budget in range(3, 9)] == [3, 3, 5, 5, 7, 8]


def test_two_matrices_with_a_common_factor_have_one_width() -> None:
    """Both are widened, or neither."""
    measured = at(("a", 9.0), ("b", 0.1), ("c", 4.6))
    sizes = dict.fromkeys("abc", sized(4, 8))
    assert chosen_bits(measured, sizes, [("a", "b")], 16) == {"a": 3, "b": 3, "c": 8}
    assert chosen_bits(measured, sizes, [("a", "b")], 20) == {"a": 3, "b": 3, "c": 8}
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
    tasks = [QuantizationTask("w", factors, projection, Quantization(kind, 32), torch.float32, 1e-2) for kind in TYPES]
    found = RoundingTask(tasks, importance).run()
    for task, error, price in zip(tasks, found.errors, found.costs, strict=True):
        lost = inputs @ (weight - task.run()["w"].tensors["weight"].double().numpy()).T
        assert price == pytest.approx(float((lost**2).mean(axis=0) @ importance), rel=1e-9)
        assert error == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(inputs @ weight.T), rel=1e-6)
    assert RoundingCost.from_json(found.to_json()) == found
