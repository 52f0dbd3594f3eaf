"""The forms that a matrix can be stored in, and the sizes at which each one saves."""

from __future__ import annotations

import bisect
import math
from typing import Literal

from curconvert_runtime.format.forms import keeps_part, largest_rank, parameters

Form = Literal[
    "dense", "cur", "interpolative", "two_factor", "modular_rows", "modular_columns", "sparse_rows", "sparse_columns"
]
"""How a matrix is stored; `curconvert_runtime.format.forms` defines each."""

Basis = Literal["rows", "subspace"]
"""What the rows of an interpolative R, or of a sparse weight, are: rows of W, or of its best rank-r approximation."""


def break_even_rank(form: Form, shape: tuple[int, int]) -> int:
    """Largest rank at which a form holds no more numbers than W itself.

    `cur`: r(m+n) + r² ≤ mn (CURing, §3.2); `interpolative`: r(m+n−r) ≤ mn, true up to min(m, n);
    `two_factor`: r(m+n) ≤ mn; the modular and sparse forms never hold more.
    """
    m, n = shape
    if keeps_part(form):
        return largest_rank(form, shape)
    if form == "interpolative":
        return min(m, n)
    if form == "two_factor":
        return m * n // (m + n)
    rank = int(((m * m + 6 * m * n + n * n) ** 0.5 - (m + n)) / 2)
    while rank and parameters(form, shape, rank) > m * n:  # the float root may be one too high
        rank -= 1
    return rank


MIN_SAVING = 0.05  # a matrix that would shrink by less stays dense: three products cost more than they save


def rank_for_density(form: Form, shape: tuple[int, int], density: float) -> int:
    """Largest rank at which a form stores at most this share of the matrix's numbers; 0 where there is none."""
    budget = density * math.prod(shape)
    ranks = range(1, break_even_rank(form, shape) + 1)
    return bisect.bisect_right(ranks, budget, key=lambda rank: parameters(form, shape, rank))
