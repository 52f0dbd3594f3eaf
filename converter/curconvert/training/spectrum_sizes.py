"""Turns the learned weights of components into ranks that fit one budget, in one ranking over all matrices."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from curconvert.base.forms import MIN_SAVING
from curconvert_runtime.format.forms import interpolative

Shapes = Mapping[str, tuple[int, int]]
Kept = Mapping[str, Tensor | None]
"""The kept components of each matrix, ascending, by weight name; None if the matrix stays dense."""


def numbers(shape: tuple[int, int], rank: int | None) -> int:
    """Return how many numbers one matrix stores at a rank; None means dense."""
    return shape[0] * shape[1] if rank is None else interpolative.FORM.parameters(shape, rank)


def choose(scores: Mapping[str, Tensor], shapes: Shapes, budget: float, multiple: int) -> Kept:
    """Choose the components with the highest scores, as many as fit a budget.

    A matrix that would shrink by less than 5% stays dense.

    Args:
        scores: Scores of each matrix's components, (k,), by weight name.
        shapes: (m, n) by weight name.
        budget: Numbers that all matrices together may store.
        multiple: Ranks are multiples of it.

    Raises:
        ValueError: Even the smallest ranks exceed the budget.
    """
    ordered = {name: torch.sort(part, descending=True, stable=True) for name, part in scores.items()}

    def at(threshold: float) -> dict[str, int | None]:
        return {
            name: _rank(shapes[name], int((part.values >= threshold).sum()), multiple) for name, part in ordered.items()
        }

    def size(ranks: Mapping[str, int | None]) -> int:
        return sum(numbers(shapes[name], rank) for name, rank in ranks.items())

    levels = sorted(set(torch.cat(list(scores.values())).tolist()))
    low, high = 0, len(levels)  # finds the lowest level that fits; above the last level nothing is kept
    while low < high:
        middle = (low + high) // 2
        if size(at(levels[middle])) <= budget:
            high = middle
        else:
            low = middle + 1
    ranks = at(levels[low] if low < len(levels) else float("inf"))
    if size(ranks) > budget:
        raise ValueError("the smallest ranks do not fit the budget")
    return {name: None if rank is None else ordered[name].indices[:rank].sort().values for name, rank in ranks.items()}


def _rank(shape: tuple[int, int], count: int, multiple: int) -> int | None:
    rank = max(count // multiple, 1) * multiple
    small = rank <= min(shape) and numbers(shape, rank) <= (1 - MIN_SAVING) * numbers(shape, None)
    return rank if small else None
