"""The training loop: AdamW on a few parameters, with a held-out measure and a recorded state to resume from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from curconvert.base.errors import InputError
from curconvert.journal.store import Journal, State
from curconvert.options.heal import HealOptions
from curconvert.training import schedule
from curconvert_runtime.checks.fidelity import Progress

Loss = Callable[[NDArray[np.intp]], Tensor]


@dataclass(frozen=True)
class Point:
    """Holds one measurement during training.

    Attributes:
        step: Steps done.
        loss: Mean training loss since the last measurement; None before the first step.
        held_out: The measure on the held-out sequences.
    """

    step: int
    loss: float | None
    held_out: float


def train(
    parameters: Sequence[nn.Parameter],
    loss: Loss,
    measure: Callable[[], float],
    counts: NDArray[np.int64],
    options: HealOptions,
    journal: Journal,
    stage: str,
    progress: Progress,
) -> list[Point]:
    """Train parameters in place, and restore the values with the least held-out measure at the end.

    Args:
        parameters: In float32.
        loss: Returns the mean loss over the positions that count in some training sequences, given their numbers.
        measure: Returns the measure on the held-out sequences; less is better.
        counts: Positions that count in each training sequence; they weight the parts of a batch.
        options: Steps, rates and batches.
        journal: Records the state at each measurement; a resumed run gives the same numbers.
        stage: The journal's name for this training.
        progress: Called after each step.

    Returns:
        The measurements; the first is taken before the first step.

    Raises:
        InputError: The loss is not finite.
    """
    optimizer = torch.optim.AdamW(list(parameters), lr=options.learning_rate)
    rates = schedule.warmed_up(optimizer, options.warmup, options.steps)
    best = [parameter.detach().clone() for parameter in parameters]
    if state := journal.recall(stage):
        curve = [Point(**point) for point in state.data["curve"]]
        _restore(optimizer, parameters, state)
        schedule.restore(rates, state.data["rates"])
        best = state.restored("best")
    else:
        curve = [Point(0, None, measure())]
        _record(journal, stage, curve, parameters, optimizer, rates, best)
    losses: list[float] = []
    for step in range(curve[-1].step, options.steps):
        if _patient(curve) >= options.patience:
            break
        losses.append(
            _step(optimizer, loss, chosen(step, len(counts), options.batch, options.seed), counts, options.accumulate)
        )
        if not np.isfinite(losses[-1]):
            raise InputError(f"{stage}: the loss is {losses[-1]} at step {step + 1}; lower --learning-rate")
        rates.step()
        progress(stage, step + 1, options.steps)
        if (step + 1) % options.evaluate_every == 0 or step + 1 == options.steps:
            curve.append(Point(step + 1, float(np.mean(losses)), measure()))
            losses.clear()
            if _patient(curve) == 0:
                best = [parameter.detach().clone() for parameter in parameters]
            _record(journal, stage, curve, parameters, optimizer, rates, best)
    with torch.no_grad():
        for parameter, value in zip(parameters, best, strict=True):
            parameter.copy_(value)
    return curve


def _step(
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    chosen: NDArray[np.intp],
    counts: NDArray[np.int64],
    parts: int,
) -> float:
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for part in np.split(chosen, parts):
        value = loss(part) * float(counts[part].sum() / counts[chosen].sum())
        value.backward()  # type: ignore[no-untyped-call]
        total += value.item()
    optimizer.step()
    return total


def chosen(step: int, sequences: int, batch: int, seed: int) -> NDArray[np.intp]:
    """Return the sequences of a step: each round takes every sequence once, in a new random order."""
    places = step * batch + np.arange(batch)
    rounds = {number: np.random.default_rng([seed, number]) for number in np.unique(places // sequences)}
    orders = {number: generator.permutation(sequences) for number, generator in rounds.items()}
    return np.array([orders[place // sequences][place % sequences] for place in places], np.intp)


def _patient(curve: Sequence[Point]) -> int:
    """Return how many measurements ago the best one was."""
    measures = [point.held_out for point in curve]
    return len(curve) - 1 - int(np.argmin(measures))


def _record(
    journal: Journal,
    stage: str,
    curve: Sequence[Point],
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    rates: LRScheduler,
    best: list[Tensor],
) -> None:
    moments = {
        name: [optimizer.state[p][name] for p in parameters if p in optimizer.state]
        for name in ("exp_avg", "exp_avg_sq")
    }
    tensors = {"now": [parameter.detach() for parameter in parameters], "best": best, **moments}
    data = {"curve": [vars(point) for point in curve], "rates": rates.state_dict()}
    journal.record(stage, State(data, tensors))


def _restore(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], state: State) -> None:
    steps = state.data["curve"][-1]["step"]
    moments = [state.restored(name) for name in ("exp_avg", "exp_avg_sq")]
    with torch.no_grad():
        for parameter, value in zip(parameters, state.restored("now"), strict=True):
            parameter.copy_(value)
    for number, parameter in enumerate(parameters if steps else ()):
        first, second = (part[number] for part in moments)
        optimizer.state[parameter] = {"step": torch.tensor(float(steps)), "exp_avg": first, "exp_avg_sq": second}
