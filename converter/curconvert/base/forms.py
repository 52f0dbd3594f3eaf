"""Ranks at which a form saves; `curconvert_runtime.format.forms` says what the forms are."""

from __future__ import annotations

import bisect
import math
from typing import Literal

from curconvert_runtime.format.forms import form_of

Basis = Literal["rows", "subspace"]
"""What the rows of an interpolative R, or of a sparse weight, are: rows of W, or of its best rank-r approximation."""


MIN_SAVING = 0.05  # a matrix that would shrink by less stays dense: three products cost more than they save


def rank_for_density(form: str, shape: tuple[int, int], density: float) -> int:
    """Largest rank at which a form stores at most this share of the matrix's numbers; 0 where there is none."""
    entry, budget = form_of(form), density * math.prod(shape)
    ranks = range(1, entry.break_even_rank(shape) + 1)
    return bisect.bisect_right(ranks, budget, key=lambda rank: entry.parameters(shape, rank))
