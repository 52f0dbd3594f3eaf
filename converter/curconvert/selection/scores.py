"""How much each decoder block does, from what goes into it and what comes out: low scores are compressed first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import scipy.linalg
from numpy.typing import NDArray
from torch import Tensor, nn

from curconvert.base.types import Matrix, Vector

States = NDArray[np.float64]
"""Hidden states, (sequences, tokens, hidden_size)."""

_TINY = 1e-300  # a state of zeros has no direction; it is not divided by zero


def angular_distances(before: States, after: States) -> Vector:
    """Angular distance that a block moves each sequence's last token (CURing, arXiv 2501.04211, §3.1).

    `d = arccos(cos(h_l, h_{l+1})) / π`, in [0, 1]; CURing averages it over sequences.

    Args:
        before: What enters the block.
        after: What leaves it.

    Returns:
        (sequences,).
    """
    return np.asarray(np.arccos(np.clip(_cosines(before[:, -1], after[:, -1]), -1.0, 1.0)) / np.pi)


def influences(before: States, after: States) -> Vector:
    """Block influence on each token: `1 − cos(h_l, h_{l+1})`, in [0, 2] (ShortGPT, arXiv 2403.03853, equation 1).

    Args:
        before: What enters the block.
        after: What leaves it.

    Returns:
        (sequences · tokens,); ShortGPT averages over all tokens.
    """
    return np.asarray(1.0 - _cosines(before, after).ravel())


def effective_rank(gram: Matrix) -> float:
    """Effective rank of a Gram matrix: `exp(−Σ pᵢ log pᵢ)`, p its normalized eigenvalues (Roy & Vetterli 2007).

    Args:
        gram: (n, n) symmetric positive semi-definite.

    Returns:
        From 1, all in one direction, to n, all directions alike; NaN if the matrix is not finite.
    """
    if not np.isfinite(gram).all():
        return math.nan
    values = scipy.linalg.eigh(gram, eigvals_only=True, check_finite=False)
    shares = values[values > 0] / values[values > 0].sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _cosines(a: States, b: States) -> Vector:
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.asarray((a * b).sum(-1) / np.maximum(norms, _TINY))


class _Mean:
    """Mean over all batches of what a function gives for each sequence or token."""

    def __init__(self, function: Callable[[States, States], Vector]) -> None:
        self._function = function
        self._parts: list[Vector] = []

    def add(self, before: States, after: States) -> None:
        self._parts.append(self._function(before, after))

    def value(self) -> float:
        return float(np.concatenate(self._parts).mean())


class _OutputRank:
    """Effective rank of a block's output.

    Each token's state is brought to unit length first (as in Diff-eRank, arXiv 2401.17139): the next block normalizes
    it too, and otherwise the first token of each sequence, hundreds of times longer, would be all that counts.
    """

    def __init__(self) -> None:
        self._gram: Matrix | float = 0.0

    def add(self, _before: States, after: States) -> None:
        states = after.reshape(-1, after.shape[-1])
        unit = states / np.maximum(np.linalg.norm(states, axis=-1, keepdims=True), _TINY)
        self._gram += unit.T @ unit

    def value(self) -> float:
        return effective_rank(np.asarray(self._gram))


_MEASURES: dict[str, Callable[[], _Mean | _OutputRank]] = {
    "angular": lambda: _Mean(angular_distances),
    "influence": lambda: _Mean(influences),
    "rank": _OutputRank,
}
SCORES: tuple[str, ...] = tuple(_MEASURES)
"""`angular` and `influence`: how far the block turns the states, so a low one is nearly the identity. `rank`: in how
many directions its output lies, so a low one is redundant (D-Rank, arXiv 2509.25622, gives such layers less)."""


class LayerScorer:
    """Scores the blocks of one pass.

    Args:
        score: One of `SCORES`.

    Attributes:
        scores: Of the blocks watched so far, in order.
    """

    def __init__(self, score: str) -> None:
        self._measure = _MEASURES[score]
        self.scores: list[float] = []

    @contextmanager
    def watching(self, layer: nn.Module) -> Iterator[None]:
        """Score a block by all calls of its module inside the context: hidden states in, hidden states out."""
        measure = self._measure()

        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            measure.add(*(states.double().cpu().numpy() for states in (inputs[0], output)))

        handle = layer.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()
        self.scores.append(measure.value())
