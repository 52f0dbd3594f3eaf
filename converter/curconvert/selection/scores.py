"""Scores each decoder block by its input and output: blocks with low scores are compressed first."""

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

_TINY = 1e-300  # avoids a division by zero for a state of zeros


def angular_distances(before: States, after: States) -> Vector:
    """Return the angular distance by which a block moves each sequence's last token (CURing, arXiv 2501.04211, §3.1).

    `d = arccos(cos(h_l, h_{l+1})) / π`, in [0, 1]; CURing averages it over sequences.

    Args:
        before: The block's input.
        after: The block's output.

    Returns:
        (sequences,).
    """
    return np.asarray(np.arccos(np.clip(_cosines(before[:, -1], after[:, -1]), -1.0, 1.0)) / np.pi)


def influences(before: States, after: States) -> Vector:
    """Return a block's influence on each token: `1 − cos(h_l, h_{l+1})`, in [0, 2] (ShortGPT, arXiv 2403.03853, eq. 1).

    Args:
        before: The block's input.
        after: The block's output.

    Returns:
        (sequences · tokens,); ShortGPT averages over all tokens.
    """
    return np.asarray(1.0 - _cosines(before, after).ravel())


def effective_rank(gram: Matrix) -> float:
    """Return a Gram matrix's effective rank: `exp(−Σ pᵢ log pᵢ)`, p its normalized eigenvalues (Roy & Vetterli 2007).

    Args:
        gram: (n, n) symmetric positive semi-definite.

    Returns:
        From 1 (a single direction) to n (all directions equal); NaN if the matrix is not finite.
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
    """Averages a function's values for each sequence or token over all batches."""

    def __init__(self, function: Callable[[States, States], Vector]) -> None:
        self._function = function
        self._parts: list[Vector] = []

    def add(self, before: States, after: States) -> None:
        self._parts.append(self._function(before, after))

    def value(self) -> float:
        return float(np.concatenate(self._parts).mean())


class _OutputRank:
    """Computes the effective rank of a block's output.

    Each token's state is first scaled to unit length (as in Diff-eRank, arXiv 2401.17139), as the next block also
    normalizes it. Otherwise the first token of each sequence, hundreds of times longer, would dominate.
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
"""`angular` and `influence` measure how far a block turns the states: a block with a low score is nearly the identity.
`rank` measures how many directions its output uses: a low score means redundancy (D-Rank, arXiv 2509.25622, gives such
layers smaller ranks)."""


class LayerScorer:
    """Computes one score for each block of a pass.

    Args:
        score: One of `SCORES`.

    Attributes:
        scores: The scores of the blocks watched so far, in order.
    """

    def __init__(self, score: str) -> None:
        self._measure = _MEASURES[score]
        self.scores: list[float] = []

    @contextmanager
    def watching(self, layer: nn.Module) -> Iterator[None]:
        """Score a block by the inputs and outputs of all calls of its module inside the context."""
        measure = self._measure()

        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            measure.add(*(states.double().cpu().numpy() for states in (inputs[0], output)))

        handle = layer.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()
        self.scores.append(measure.value())
