"""First and second moments of what enters a linear layer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from curconvert.chunked import CHUNK, ChunkedMatrix

HELD_OUT = 8  # every so many batches one is held out, where that is asked for
Matrix = NDArray[np.float64]
_CONSTANT = 1e-12  # share of a second moment below which a variance is rounding, in float64


@dataclass(frozen=True)
class Drift:
    """How far a compressed model's inputs x̂ are from the original's x, token by token.

    Moments of the differences themselves, so that nothing cancels where these are small.

    Attributes:
        cross: `Δ = E[(x − x̂) x̂ᵀ]`, (in_features, in_features) float64.
        mean: `δ = E[x − x̂]`, (in_features,) float64.
    """

    cross: Matrix
    mean: NDArray[np.float64]


@dataclass(frozen=True)
class InputStatistics:
    """What calibration knows about a linear layer's input.

    The Gram matrix is held as it is, or as the inputs themselves where these are smaller: then T tokens of n features
    take T·n numbers instead of n², and products with the Gram matrix go through them.

    Attributes:
        second_moment: `E[x xᵀ]` over the calibration tokens, uncentred, (in_features, in_features) float64; None
            where `samples` stand for it.
        tokens: Number of tokens averaged over.
        mean: `μ = E[x]`, (in_features,) float64.
        held_out: Of a part of these tokens, to choose settings on; None where none was held out.
        samples: Every input, (tokens, in_features) float32; None where there is a second moment.
        drift: From the original's inputs; None where these are the original's, or were not compared with them.
    """

    second_moment: Matrix | None
    tokens: int
    mean: NDArray[np.float64]
    held_out: InputStatistics | None = None
    samples: NDArray[np.float32] | None = None
    drift: Drift | None = None

    @cached_property
    def gram(self) -> Matrix:
        """`H = E[x xᵀ]`, (in_features, in_features) float64; computed on first use where samples stand for it."""
        if self.second_moment is not None:
            return self.second_moment
        total = np.zeros((len(self.mean), len(self.mean)))
        for _, part in self._inputs.chunks():
            total += part.T @ part
        return total / self.tokens

    @property
    def rest(self) -> InputStatistics:
        """Statistics of the tokens that are not held out."""
        part = self.held_out
        if part is None:
            return self
        tokens, drift = self.tokens - part.tokens, None

        def without(whole: Matrix, held_out: Matrix) -> Matrix:
            return (self.tokens * whole - part.tokens * held_out) / tokens

        if self.drift is not None and part.drift is not None:
            drift = Drift(without(self.drift.cross, part.drift.cross), without(self.drift.mean, part.drift.mean))
        return InputStatistics(without(self.gram, part.gram), tokens, without(self.mean, part.mean), drift=drift)

    @cached_property
    def diagonal(self) -> NDArray[np.float64]:
        """Mean square of each input feature, (in_features,): the diagonal of H."""
        if self.second_moment is not None:
            return np.diag(self.second_moment)
        total = np.zeros(len(self.mean))
        for _, part in self._inputs.chunks():
            total += np.einsum("ij,ij->j", part, part)
        return total / self.tokens

    @property
    def rms(self) -> NDArray[np.float64]:
        """Root mean square of each input feature, (in_features,)."""
        return np.sqrt(self.diagonal)

    @property
    def finite(self) -> bool:
        """Whether no input overflowed."""
        found = [self.gram if self.samples is None else self.samples, *([self.drift.cross] if self.drift else [])]
        return all(bool(np.isfinite(part).all()) for part in found)

    @property
    def centred(self) -> InputStatistics:
        """Statistics of `x − μ`: second moments `H − μμᵀ`, mean zero. A constant feature has all zeros, exactly.

        A drift is centred likewise: `Δ − δμᵀ`.
        """
        gram = self.gram - np.outer(self.mean, self.mean)
        constant = np.diag(gram) <= _CONSTANT * np.diag(self.gram)
        gram[constant, :] = gram[:, constant] = 0.0
        drift = self.drift
        if drift is not None:
            cross = drift.cross - np.outer(drift.mean, self.mean)
            cross[:, constant] = 0.0
            drift = Drift(cross, np.zeros_like(self.mean))
        return InputStatistics(gram, self.tokens, np.zeros_like(self.mean), drift=drift)

    def times(self, matrix: Matrix) -> Matrix:
        """Return `H M`.

        Args:
            matrix: M, (in_features, k) float64.
        """
        if self.second_moment is not None:
            return np.asarray(self.second_moment @ matrix)
        found = np.zeros_like(matrix)
        for _, part in self._inputs.chunks():
            found += part.T @ (part @ matrix)
        return found / self.tokens

    def images(self, matrix: Matrix) -> NDArray[np.float32]:
        """Return the one large product that `energy` needs: `M H`, or `M Xᵀ / √T` where samples X are held, (k, any).

        It is linear in M, and float32: such sums are only reported, and 1e-6 of them is exact enough.

        Args:
            matrix: M, (k, in_features) float64.
        """
        if self.samples is None:
            single, gram = matrix.astype(np.float32), self.gram
            found = np.empty(matrix.shape, np.float32)
            step = max(1, CHUNK // len(gram))  # the Gram matrix of a wide layer is never copied as a whole
            for start in range(0, len(gram), step):
                part = slice(start, start + step)
                found[:, part] = single @ gram[:, part].astype(np.float32)
            return found
        return np.asarray((matrix / np.sqrt(self.tokens)).astype(np.float32) @ self.samples.T)

    def energy(self, matrix: Matrix, images: NDArray[np.float32] | None = None) -> float:
        """Return `E‖M x‖² = tr(M H Mᵀ)`.

        Args:
            matrix: M, (k, in_features) float64.
            images: `images(matrix)`, where it is known.
        """
        found = self.images(matrix) if images is None else images
        return (
            squares(found) if self.samples is not None else max(float(np.vdot(found.astype(np.float64), matrix)), 0.0)
        )

    def mixed(self, weights: Matrix) -> Matrix:
        """Return sums of inputs, `Xᵀ M`, (in_features, k); where samples are held.

        Args:
            weights: M, (tokens, k) float64.
        """
        return self._inputs.left_times(weights.T).T

    @property
    def _inputs(self) -> ChunkedMatrix:
        assert self.samples is not None
        return ChunkedMatrix(torch.from_numpy(self.samples))


def squares(matrix: NDArray[np.floating[Any]]) -> float:
    """Sum the squares of a matrix, in float64."""
    return float(np.einsum("ij,ij->", matrix, matrix, dtype=np.float64))


class Moments(Protocol):
    """Takes in batches of an input."""

    def add(self, x: Tensor, original: Tensor | None = None) -> None:
        """Take a batch, (…, in_features), and what the original has in its place where the drift is wanted."""

    def result(self) -> InputStatistics:
        """Return the statistics of all batches."""


class _Samples:
    """Keeps every input, in memory that is taken once; never a drift, whose regression needs more tokens than that."""

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
    """Adds up `x` and `x xᵀ` in float64, batch by batch, and the moments of the drift where the original's x come."""

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
        with torch.inference_mode():  # in place, and what was made in this mode cannot be changed outside of it
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
    """Return what takes in an input.

    Args:
        size: Its features.
        device: Where it is.
        exact: See `StatisticsCollector`.
        tokens: How many will come in all. An input of more features than that is kept itself, unless a part of it is
            to be held out; None keeps none.
        every: Of so many batches the last one is held out; None holds none out.
    """
    if tokens is not None and tokens < size and every is None:
        return _Samples(tokens, size)
    return _Accumulator(size, torch.float64 if exact else torch.float32, device, every=every)


class StatisticsCollector:
    """Collects mean and Gram matrix of each distinct input among some linears.

    Linears that are called with the same tensor (q, k and v; gate and up) share them.

    Args:
        linears: By weight name.
        exact: Multiply in float64: the products may feed solves whose condition is the square of the data's. Otherwise
            each batch's product is float32, and faster, except before a bias: its centred Gram matrix is a difference.
        split: Names of linears for which every eighth batch is held out.
        tokens: How many will come in all. Inputs of more features than that are kept themselves; None keeps none.
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
        """Yield the names that share an input, with its statistics."""
        for leader, accumulator in self._accumulators.items():
            members = tuple(name for name, head in self._leader.items() if head == leader)
            yield members, accumulator.result()
