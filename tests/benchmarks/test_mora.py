"""MoRA as a plain matrix in NumPy, and ranks that train a given number of parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.experiments.mora import MoRALinear, attach, spread_ranks


def dense(M: NDArray[np.float64], outputs: int, inputs: int) -> NDArray[np.float64]:
    """ΔW entry by entry: output piece i is M times the input's piece i, each of its pairs (k, k + r/2) turned."""
    rank = len(M)
    whole = np.zeros((outputs, inputs))
    for row in range(outputs):
        place = row % (-(-inputs // rank) * rank)
        piece, within = divmod(place, rank)
        for k in range(rank // 2):
            angle = piece * 10000.0 ** (-2 * k / rank)
            first, second = ((piece * rank + index) for index in (k, k + rank // 2))
            a, b = M[within, k], M[within, k + rank // 2]
            for source, value in (
                (first, a * np.cos(angle) + b * np.sin(angle)),
                (second, b * np.cos(angle) - a * np.sin(angle)),
            ):
                whole[row, source if source < inputs else source - inputs] += value
    return whole


@pytest.mark.parametrize(("inputs", "outputs", "rank"), [(12, 8, 4), (10, 31, 4), (9, 5, 6), (8, 8, 8)])
def test_the_product_is_that_of_a_plain_matrix(inputs: int, outputs: int, rank: int) -> None:
    """With inputs that r̂ does not divide, and with more outputs than the pieces give."""
    torch.manual_seed(0)
    base = nn.Linear(inputs, outputs)
    linear = MoRALinear(base, rank)
    nn.init.normal_(linear.M)
    x = torch.randn(2, 3, inputs)
    change = dense(linear.M.detach().double().numpy(), outputs, inputs)
    wanted = base(x).detach().double().numpy() + x.double().numpy() @ change.T
    np.testing.assert_allclose(linear(x).detach().numpy(), wanted, atol=1e-5)


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 6))


def test_a_zero_matrix_changes_nothing_and_gets_the_gradient_alone() -> None:
    """Bit for bit; the linears' own weights are frozen."""
    changed, x = model(), torch.randn(4, 12)
    parameters = attach(changed, ["0", "2"], [4, 6])
    assert torch.equal(changed(x), model()(x))
    changed(x).square().sum().backward()
    reached = [parameter for parameter in changed.parameters() if parameter.grad is not None]
    assert [id(parameter) for parameter in reached] == [id(parameter) for parameter in parameters]
    assert all(parameter.grad.abs().sum() > 0 for parameter in reached)
    assert sum(parameter.numel() for parameter in parameters) == 4**2 + 6**2


def test_a_rank_of_zero_leaves_a_linear_alone() -> None:
    """It stays the plain one."""
    changed = model()
    assert len(attach(changed, ["0", "2"], [0, 6])) == 1
    assert isinstance(changed.get_submodule("0"), nn.Linear)


@pytest.mark.parametrize("rank", [0, 3, 14])
def test_odd_and_too_large_ranks_are_refused(rank: int) -> None:
    """A rotation turns pairs; a piece is no longer than the input."""
    with pytest.raises(ValueError, match="expected an even number from 2 to 12"):
        MoRALinear(nn.Linear(12, 10), rank)


def test_ranks_train_as_many_parameters_as_u() -> None:
    """Within 2 % for SmolLM2's 18 matrices of rank 128 and its 120 dense linears, by MoRA and by LoRA."""
    wanted, sizes = 18 * 128**2, [768, 1152, 2112, 2112] * 30
    mora = spread_ranks(wanted, sizes, lambda _, rank: rank**2, step=2)
    lora = spread_ranks(wanted, sizes, lambda size, rank: rank * size)
    assert set(mora) == {48, 50}
    assert set(lora) == {1, 2}
    assert sum(rank**2 for rank in mora) == pytest.approx(wanted, rel=0.02)
    assert sum(size * rank for size, rank in zip(sizes, lora, strict=True)) == pytest.approx(wanted, rel=0.02)
