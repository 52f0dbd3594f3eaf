"""Learns the weights of components end to end, in SoCo's three stages (arXiv 2502.15092).

Coarse: all weights are trained, with a price on their sum, adjusted until the sum fits the budget. Sparsify: the
components with the lowest weights fade out. Refine: the other components are trained without a price, and their weights
may exceed 1. The loss is KL(original ‖ compressed) on the calibration sequences. At the start, the loss and its
gradient are zero, and only the price changes the weights. A weight settles where its gradient balances its price.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from curconvert.base.device import products_in
from curconvert.base.errors import InputError
from curconvert.base.types import Ids
from curconvert.journal.store import Journal, State
from curconvert.training import schedule
from curconvert.training.loop import chosen
from curconvert.training.spectral_linear import SpectralLinear
from curconvert.training.spectrum_sizes import Kept, Shapes, choose
from curconvert.training.student import divergence
from curconvert_runtime.checks.fidelity import Progress

STAGE = "learn"
_COARSE, _SPARSIFY = 0.5, 0.2  # shares of the steps; the remaining steps refine
_RATE = 0.02  # of Adam: a weight needs at least fifty steps from 1 to 0
BATCH = 16  # sequences per step
SEQUENCES_AT_ONCE = 4  # sequences whose logits are in memory at once
_SLOPE, _LARGEST = 4.0, 1.25  # how fast the price follows the size, and its largest change in one step
_MOMENTS = ("exp_avg", "exp_avg_sq")
_RECORD = 10  # steps between recorded states


@dataclass(frozen=True)
class Learned:
    """Holds the result of learning.

    Attributes:
        kept: The kept components, by weight name.
        scales: Their learned weights, by weight name; without dense matrices.
    """

    kept: Kept
    scales: Mapping[str, Tensor]


@dataclass(frozen=True)
class Learning:
    """Says how to learn, and for which size.

    Attributes:
        parameters: Most parameters of the whole model.
        steps: Steps of the optimizer, over all stages.
        ridge: λ of `H + λ diag(H)`.
        multiple: Ranks are multiples of it.
        seed: Seed for the order of the sequences.
    """

    parameters: int
    steps: int
    ridge: float
    multiple: int
    seed: int


class Learner:
    """Runs the three stages.

    Args:
        student: transformers' model, with `linears` instead of dense linears; only their weights `s` are trained.
        linears: By weight name.
        teacher: The original.
        ids: Token ids to learn from, (sequences, tokens).
        shapes: (m, n) of each linear.
        budget: Numbers that the linears together may store.
        learning: Steps, multiple and seed.
        dtype: Dtype of products.
    """

    def __init__(
        self,
        student: nn.Module,
        linears: Mapping[str, SpectralLinear],
        teacher: nn.Module,
        ids: Ids,
        shapes: Shapes,
        budget: float,
        learning: Learning,
        dtype: torch.dtype,
    ) -> None:
        self._student, self._linears, self._teacher = student, linears, teacher
        self._ids, self._shapes, self._budget, self._multiple = ids, shapes, budget, learning.multiple
        self._steps, self._seed, self._dtype = learning.steps, learning.seed, dtype
        self._coarse = max(1, round(_COARSE * self._steps))
        self._faded = self._coarse + max(1, round(_SPARSIFY * self._steps))
        self._weights = [linear.s for linear in linears.values()]
        student.requires_grad_(False)
        for weight in self._weights:
            weight.requires_grad_()
        # Average number of parameters per component of each matrix, scaled to a mean of 1 over all components.
        prices = [
            torch.full((len(w),), float(max(shapes[name]))) for name, w in zip(linears, self._weights, strict=True)
        ]
        self._prices = torch.cat(prices) / torch.cat(prices).mean()

    def run(self, journal: Journal, progress: Progress) -> Learned:
        """Run all stages, or resume from the journal's last record.

        Raises:
            InputError: The budget is not possible, or the loss is not finite.
        """
        optimizer = torch.optim.Adam(self._weights, lr=_RATE)
        rates = schedule.held(optimizer, self._faded, self._steps)  # until the removed components are gone
        price, kept, done = 1.0, None, 0
        if state := journal.recall(STAGE):
            price, done = state.data["price"], state.data["steps"]
            kept = self._restore(optimizer, state)
            schedule.restore(rates, state.data["rates"])
        goal = self._goal()
        for step in range(done, self._steps):
            if step == self._coarse:
                kept = self._chosen()
            self._set_gates(kept, step)
            coarse = step < self._coarse
            loss = self._loss(step, price if coarse else 0.0)
            if not math.isfinite(loss):
                raise InputError(f"--method soco: the loss is {loss} at step {step + 1}; use --method auto")
            optimizer.step()
            rates.step()
            with torch.no_grad():
                for weight in self._weights:
                    weight.clamp_(min=0.0)
            if coarse:
                wanted = 1 + (goal - 1) * (step + 1) / self._coarse
                change = math.exp(_SLOPE * (self._left() - wanted))
                price *= min(max(change, 1 / _LARGEST), _LARGEST)
            if (step + 1) % _RECORD == 0 or step + 1 == self._steps:
                data = {"steps": step + 1, "price": price, "rates": rates.state_dict()}
                self._record(journal, optimizer, data, kept)
                progress(STAGE, step + 1, self._steps)
        if kept is None:
            kept = self._chosen()
        scales = {name: self._linears[name].s.detach()[part].clone() for name, part in kept.items() if part is not None}
        return Learned(kept, scales)

    def _goal(self) -> float:
        """Return the largest share of components that fits the budget if every matrix keeps the same share."""
        low, high = 0.0, 1.0
        for _ in range(40):
            share = (low + high) / 2
            stored = sum(share * min(m, n) * (m + n - share * min(m, n)) for m, n in self._shapes.values())
            low, high = (share, high) if stored <= self._budget else (low, share)
        return low

    def _left(self) -> float:
        """Return the mean of all weights, weighted by their prices; weights above 1 count as 1."""
        weights = torch.cat([weight.detach() for weight in self._weights])
        return float((self._prices * weights.clamp(max=1.0)).mean())

    def _loss(self, step: int, price: float) -> float:
        """Set the gradients of one step, and return its loss."""
        for weight in self._weights:
            weight.grad = None
        total = 0.0
        for part in np.array_split(chosen(step, len(self._ids), BATCH, self._seed), BATCH // SEQUENCES_AT_ONCE):
            ids = torch.from_numpy(self._ids[part])
            with products_in(self._dtype):
                ours = self._student(input_ids=ids, use_cache=False).logits
                with torch.no_grad():
                    theirs = self._teacher(input_ids=ids, use_cache=False).logits
            value = divergence(ours, theirs) * (len(part) / BATCH)
            value.backward()  # type: ignore[no-untyped-call]
            total += value.item()
        if price:
            for weight, prices in zip(self._weights, self._split(self._prices), strict=True):
                assert weight.grad is not None
                weight.grad += price * prices / len(self._prices)
        return total

    def _split(self, values: Tensor) -> Iterator[Tensor]:
        yield from torch.split(values, [len(weight) for weight in self._weights])

    def _chosen(self) -> Kept:
        scores = {name: linear.s.detach() for name, linear in self._linears.items()}
        try:
            return choose(scores, self._shapes, self._budget, self._multiple)
        except ValueError as error:
            raise InputError(f"--method soco: {error}; keep more, or compress more --targets") from error

    def _set_gates(self, kept: Kept | None, step: int) -> None:
        """Fade out the components that are not kept; give matrices that stay dense their original weights."""
        if kept is None:
            return
        rest = max(0.0, 1 - (step - self._coarse + 1) / (self._faded - self._coarse))
        for name, part in kept.items():
            linear = self._linears[name]
            with torch.no_grad():
                if part is None:
                    linear.s.fill_(1.0)
                    linear.s.requires_grad_(False)
                else:
                    linear.gate.fill_(rest)
                    linear.gate[part] = 1.0

    def _record(
        self, journal: Journal, optimizer: torch.optim.Adam, data: Mapping[str, Any], kept: Kept | None
    ) -> None:
        parts = [] if kept is None else list(kept.values())
        tensors = {
            "weights": [weight.detach() for weight in self._weights],
            "kept": [torch.tensor([-1]) if part is None else part for part in parts],  # -1: dense
            **{name: [optimizer.state[weight][name] for weight in self._weights] for name in _MOMENTS},
        }
        journal.record(STAGE, State(data, tensors))

    def _restore(self, optimizer: torch.optim.Adam, state: State) -> Kept | None:
        first, second = (state.restored(name) for name in _MOMENTS)
        for weight, value, mean, square in zip(self._weights, state.restored("weights"), first, second, strict=True):
            with torch.no_grad():
                weight.copy_(value)
            count = torch.tensor(float(state.data["steps"]))
            optimizer.state[weight] = {"step": count, "exp_avg": mean, "exp_avg_sq": square}
        parts = state.restored("kept")
        if not parts:
            return None
        return {name: None if part[0] < 0 else part for name, part in zip(self._linears, parts, strict=True)}
