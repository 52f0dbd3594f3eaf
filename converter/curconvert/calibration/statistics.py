"""Collects the first and second moments of the inputs of linears."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from curconvert.linalg.statistics import Drift, InputStatistics

HELD_OUT = 8  # one of every HELD_OUT batches is held out, for linears that need it


class Moments(Protocol):
    """Accumulates the statistics of one input, batch by batch."""

    def add(self, x: Tensor, original: Tensor | None = None) -> None:
        """Add a batch, (…, in_features); pass the original model's batch as well to measure the drift."""

    def result(self) -> InputStatistics:
        """Return the statistics of all batches."""


class _Samples:
    """Keeps every input, in memory allocated once; it measures no drift, whose regression needs more tokens."""

    def __init__(self, tokens: int, size: int) -> None:
        self._held = np.empty((tokens, size), np.float32)
        self._count = 0

    def add(self, x: Tensor, original: Tensor | None = None) -> None:
        flat = x.reshape(-1, x.shape[-1]).to("cpu", torch.float32).numpy()
        self._held[self._count : self._count + len(flat)] = flat
        self._count += len(flat)

    def result(self) -> InputStatistics:
        held = self._held[: self._count]
        mean = held.sum(axis=0, dtype=np.float64) / max(self._count, 1)
        return InputStatistics(None, self._count, mean, samples=held)


class _Accumulator:
    """Sums `x` and `x xᵀ` in float64, batch by batch, and the moments of the drift if it gets the original's x."""

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device, *, every: int | None = None) -> None:
        self._dtype, self._device = dtype, device
        self.totals = [self._zeros(size, size), self._zeros(size)]
        self.tokens = 0
        self._batches, self._every = 0, every
        self._held_out = _Accumulator(size, dtype, device) if every else None

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=self._device)

    def add(self, x: Tensor, original: Tensor | None = None) -> None:
        self._batches += 1
        if self._held_out is not None and self._every and self._batches % self._every == 0:
            self._held_out.add(x, original)
            return
        flat = x.reshape(-1, x.shape[-1]).to(self._dtype)
        self._sum_up(self.totals[:2], flat, flat)
        self.tokens += flat.shape[0]
        if original is not None:
            if len(self.totals) == 2:
                self.totals += [torch.zeros_like(total) for total in self.totals]
            self._sum_up(self.totals[2:], original.reshape(flat.shape).to(flat) - flat, flat)

    def _sum_up(self, totals: list[Tensor], left: Tensor, right: Tensor) -> None:
        product, mean = totals
        if self._dtype is torch.float64:
            product.addmm_(left.T, right)  # in place: no second matrix of this size
        else:
            product += left.T @ right
        mean += left.sum(dim=0, dtype=torch.float64)

    def result(self) -> InputStatistics:
        part = self._held_out
        if part is None or part.tokens == 0:
            return self._mean(None)
        found = part.result()
        with torch.inference_mode():  # tensors made in this mode can only be changed in place within it
            for own, other in zip(self.totals, part.totals, strict=True):
                own.add_(other)
        self.tokens += part.tokens
        return self._mean(found)

    def _mean(self, held_out: InputStatistics | None) -> InputStatistics:
        count = max(self.tokens, 1)
        gram, mean, *drift = ((total / count).cpu().numpy() for total in self.totals)
        return InputStatistics(gram, self.tokens, mean, held_out, drift=Drift(*drift) if drift else None)


def moments_of(
    size: int, device: torch.device, *, exact: bool = True, tokens: int | None = None, every: int | None = None
) -> Moments:
    """Return an accumulator for one input: of its moments, or of the input itself.

    Args:
        size: Number of features.
        device: Where the input is.
        exact: See `StatisticsCollector`.
        tokens: Total number. With more features than tokens, the input is stored instead, unless `every` is set.
            None always accumulates moments.
        every: Hold out the last of every `every` batches; None holds out none.
    """
    if tokens is not None and tokens < size and every is None:
        return _Samples(tokens, size)
    return _Accumulator(size, torch.float64 if exact else torch.float32, device, every=every)


class StatisticsCollector:
    """Collects the mean and the Gram matrix of each distinct input among some linears.

    Linears that are called with the same tensor (q, k and v; gate and up) share their statistics.

    Args:
        linears: By weight name.
        exact: Multiply in float64, for solves whose condition number is the square of the data's. Otherwise each
            batch's product is float32, which is faster. Linears with a bias always use float64: their centered Gram
            matrix is a difference.
        split: Names of linears for which every eighth batch is held out.
        tokens: Total number. Inputs with more features than tokens are stored instead. None stores no inputs.
    """

    def __init__(
        self,
        linears: dict[str, nn.Module],
        *,
        exact: bool = True,
        split: Collection[str] = (),
        tokens: int | None = None,
    ) -> None:
        self._exact, self._split, self._tokens = exact, frozenset(split), tokens
        self._linears = linears
        self._leader: dict[str, str] = {}
        self._accumulators: dict[str, Moments] = {}
        self._last: tuple[Tensor, str] | None = None

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Watch every forward call inside the context."""
        handles = [module.register_forward_pre_hook(self._hook(name)) for name, module in self._linears.items()]
        try:
            yield
        finally:
            self._last = None
            for handle in handles:
                handle.remove()

    def _hook(self, name: str):  # type: ignore[no-untyped-def]  # torch's hook type is not public
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            if self._last is not None and self._last[0] is x:
                self._leader[name] = self._last[1]
                return
            self._last = (x, name)
            self._leader[name] = name
            if name not in self._accumulators:
                exact = self._exact or getattr(module, "bias", None) is not None
                every = HELD_OUT if name in self._split else None
                self._accumulators[name] = moments_of(
                    x.shape[-1], x.device, exact=exact, tokens=self._tokens, every=every
                )
            self._accumulators[name].add(x)

        return hook

    def groups(self) -> Iterable[tuple[tuple[str, ...], InputStatistics]]:
        """Yield the names of the linears that share an input, with its statistics."""
        for leader, accumulator in self._accumulators.items():
            members = tuple(name for name, head in self._leader.items() if head == leader)
            yield members, accumulator.result()
