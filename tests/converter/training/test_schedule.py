"""Learning rates step by step, against their formulas, and after an interruption."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LRScheduler

from curconvert.training import schedule

RATE = 3e-3


def optimizer() -> AdamW:
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    return AdamW([parameter], lr=RATE)


def walk(steps: int, adam: AdamW, rates: LRScheduler) -> list[float]:
    """Return the rate of each of some steps, and take them."""
    found = []
    for _ in range(steps):
        found.append(adam.param_groups[0]["lr"])
        adam.step()
        rates.step()
    return found


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("warmup", "steps"), [(0, 12), (1, 12), (4, 40), (100, 300), (5, 5), (20, 8)])
def test_rates_rise_and_fall(warmup: int, steps: int) -> None:
    """The warm-up's last step has the whole rate, and the step after the last would have none."""
    adam = optimizer()
    found = walk(steps, adam, schedule.warmed_up(adam, warmup, steps))
    for step, rate in enumerate(found):
        if step < warmup:
            assert rate == pytest.approx(RATE * (step + 1) / warmup, rel=1e-9)
        else:
            done = (step - warmup) / (steps - warmup)
            assert rate == pytest.approx(RATE * (1 + math.cos(math.pi * done)) / 2, rel=1e-9)
    if warmup < steps:
        assert adam.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


@pytest.mark.filterwarnings("error")
def test_rates_are_held_and_fall() -> None:
    """Until the step that is asked for."""
    adam = optimizer()
    found = walk(20, adam, schedule.held(adam, 14, 20))
    expected = [RATE] * 14 + [RATE * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("after", [0, 3, 4, 5, 17])
@pytest.mark.parametrize("make", [schedule.warmed_up, schedule.held])
def test_an_interruption_changes_no_rate(make: Callable[[AdamW, int, int], LRScheduler], after: int) -> None:
    """To the last bit, through JSON."""
    adam = optimizer()
    whole = walk(20, adam, make(adam, 4, 20))
    first = optimizer()
    rates = make(first, 4, 20)
    walk(after, first, rates)
    state = json.loads(json.dumps(rates.state_dict()))
    second = optimizer()
    again = make(second, 4, 20)
    schedule.restore(again, state)
    assert walk(20 - after, second, again) == whole[after:]
