"""Builds learning-rate schedules that end in a cosine, from torch's schedulers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR


def warmed_up(optimizer: Optimizer, warmup: int, steps: int) -> LRScheduler:
    """Return a schedule that rises linearly to the optimizer's rate during warm-up, and falls to 0 at the last step."""
    fall = CosineAnnealingLR(optimizer, max(1, steps - warmup))
    if warmup == 0:
        return fall
    # The first step has 1 / warmup of the rate, the last step of the warm-up the full rate.
    rise = LinearLR(optimizer, start_factor=1 / warmup, total_iters=max(1, warmup - 1))
    return SequentialLR(optimizer, [rise, fall], [warmup])


def held(optimizer: Optimizer, until: int, steps: int) -> LRScheduler:
    """Return a schedule that keeps the optimizer's rate until a step, and falls to 0 at the last step."""
    fall = CosineAnnealingLR(optimizer, max(1, steps - until))
    return SequentialLR(optimizer, [ConstantLR(optimizer, factor=1.0, total_iters=until), fall], [until])


def restore(schedule: LRScheduler, state: Mapping[str, Any]) -> None:
    """Resume a schedule from its `state_dict`, and set the rates of its optimizer."""
    schedule.load_state_dict(dict(state))
    for group, rate in zip(schedule.optimizer.param_groups, schedule.get_last_lr(), strict=True):
        group["lr"] = rate
