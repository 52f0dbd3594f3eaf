"""Learning rates that end along a cosine, as torch's schedulers give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR


def warmed_up(optimizer: Optimizer, warmup: int, steps: int) -> LRScheduler:
    """Return rates that rise linearly over the warm-up to the optimizer's own, and then fall to 0 at the last step."""
    fall = CosineAnnealingLR(optimizer, max(1, steps - warmup))
    if warmup == 0:
        return fall
    # The first step has a share of the rate, and the last one of the warm-up all of it.
    rise = LinearLR(optimizer, start_factor=1 / warmup, total_iters=max(1, warmup - 1))
    return SequentialLR(optimizer, [rise, fall], [warmup])


def held(optimizer: Optimizer, until: int, steps: int) -> LRScheduler:
    """Return rates that stay the optimizer's own until a step, and then fall to 0 at the last one."""
    fall = CosineAnnealingLR(optimizer, max(1, steps - until))
    return SequentialLR(optimizer, [ConstantLR(optimizer, factor=1.0, total_iters=until), fall], [until])


def restore(schedule: LRScheduler, state: Mapping[str, Any]) -> None:
    """Go on from a schedule's `state_dict`, its optimizer included."""
    schedule.load_state_dict(dict(state))
    for group, rate in zip(schedule.optimizer.param_groups, schedule.get_last_lr(), strict=True):
        group["lr"] = rate
