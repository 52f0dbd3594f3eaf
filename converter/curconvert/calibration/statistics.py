"""First and second moments of what enters a linear layer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

HELD_OUT = 8  # every so many batches one is held out, where that is asked for
_CONSTANT = 1e-12  # share of a second moment below which a variance is rounding, in float64


@dataclass(frozen=True)
class InputStatistics:
    """What calibration knows about a linear layer's input.

    Attributes:
        gram: `E[x xᵀ]` over the calibration tokens, uncentred, (in_features, in_features) float64.
        tokens: Number of tokens averaged over.
        mean: `μ = E[x]`, (in_features,) float64.
        held_out: Of a part of these tokens, to choose settings on; None where none was held out.
    """

    gram: NDArray[np.float64]
    tokens: int
    mean: NDArray[np.float64]
    held_out: InputStatistics | None = None

    @property
    def rest(self) -> InputStatistics:
        """Statistics of the tokens that are not held out."""
        part = self.held_out
        if part is None:
            return self
        tokens = self.tokens - part.tokens
        gram = (self.tokens * self.gram - part.tokens * part.gram) / tokens
        return InputStatistics(gram, tokens, (self.tokens * self.mean - part.tokens * part.mean) / tokens)

    @property
    def rms(self) -> NDArray[np.float64]:
        """Root mean square of each input feature, (in_features,): `sqrt(diag E[x xᵀ])`."""
        return np.sqrt(np.diag(self.gram))

    @property
    def centred(self) -> InputStatistics:
        """Statistics of `x − μ`: second moments `H − μμᵀ`, mean zero. A constant feature has all zeros, exactly."""
        gram = self.gram - np.outer(self.mean, self.mean)
        constant = np.diag(gram) <= _CONSTANT * np.diag(self.gram)
        gram[constant, :] = gram[:, constant] = 0.0
        return InputStatistics(gram, self.tokens, np.zeros_like(self.mean))


class _Accumulator:
    """Adds up `x` and `x xᵀ` in float64, batch by batch."""

    def __init__(self, size: int, dtype: torch.dtype, *, split: bool) -> None:
        self._dtype = dtype
        self.total = torch.zeros((size, size), dtype=torch.float64)
        self.sum = torch.zeros(size, dtype=torch.float64)
        self.tokens = 0
        self._batches = 0
        self._held_out = _Accumulator(size, dtype, split=False) if split else None

    def add(self, x: Tensor) -> None:
        self._batches += 1
        if self._held_out is not None and self._batches % HELD_OUT == 0:
            self._held_out.add(x)
            return
        flat = x.reshape(-1, x.shape[-1]).to(self._dtype)
        if self._dtype is torch.float64:
            self.total.addmm_(flat.T, flat)  # in place: no second matrix of this size
        else:
            self.total += flat.T @ flat
        self.sum += flat.sum(dim=0, dtype=torch.float64)
        self.tokens += flat.shape[0]

    def result(self) -> InputStatistics:
        part = self._held_out
        if part is None or part.tokens == 0:
            return self._mean(None)
        found = part.result()
        # By NumPy, in place: what was made in torch's inference mode cannot be changed outside of it.
        self.total.numpy()[:] += part.total.numpy()
        self.sum.numpy()[:] += part.sum.numpy()
        self.tokens += part.tokens
        return self._mean(found)

    def _mean(self, held_out: InputStatistics | None) -> InputStatistics:
        count = max(self.tokens, 1)
        return InputStatistics((self.total / count).numpy(), self.tokens, (self.sum / count).numpy(), held_out)


class StatisticsCollector:
    """Collects mean and Gram matrix of each distinct input among some linears.

    Linears that are called with the same tensor (q, k and v; gate and up) share them.

    Args:
        linears: By weight name.
        exact: Multiply in float64: the products may feed solves whose condition is the square of the data's. Otherwise
            each batch's product is float32, and faster, except before a bias: its centred Gram matrix is a difference.
        split: Names of linears for which every eighth batch is held out.
    """

    def __init__(self, linears: dict[str, nn.Module], *, exact: bool = True, split: Collection[str] = ()) -> None:
        self._exact, self._split = exact, frozenset(split)
        self._linears = linears
        self._leader: dict[str, str] = {}
        self._accumulators: dict[str, _Accumulator] = {}
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
                dtype = torch.float64 if exact else torch.float32
                self._accumulators[name] = _Accumulator(x.shape[-1], dtype, split=name in self._split)
            self._accumulators[name].add(x)

        return hook

    def groups(self) -> Iterable[tuple[tuple[str, ...], InputStatistics]]:
        """Yield the names that share an input, with its statistics."""
        for leader, accumulator in self._accumulators.items():
            members = tuple(name for name, head in self._leader.items() if head == leader)
            yield members, accumulator.result()
