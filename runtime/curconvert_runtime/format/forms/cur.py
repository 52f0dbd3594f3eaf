"""`cur`: C·U·R, real columns and rows of the matrix and what links them.

| factors | indices | Ŵ |
|---|---|---|
| C (m, r), U (r, r), R (r, n) | rows (r), cols (r) | C·U·R |
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curconvert_runtime.format.forms.form import Form, Matrix, Shape, Tensors, wide
from curconvert_runtime.format.forms.shared import Shared

FLOAT_LINK_RANK = 128
"""Largest rank at which U stays float: it is small then, and has the largest entries of the three."""


class CUR(Form):
    """`y = C (U (R x))`."""

    name = "cur"
    factors = ("R", "U", "C")
    linking = "U"
    slices = MappingProxyType({"C": (1, "cols"), "R": (0, "rows")})

    def shapes(self, shape: Shape, rank: int, shared: Shared | None = None) -> dict[str, Shape]:
        """C (m, r), U (r, r), R (r, n)."""
        return {"C": (shape[0], rank), "U": (rank, rank), "R": (rank, shape[1])}

    def index_lengths(self, shape: Shape, rank: int, shared: Shared | None = None) -> dict[str, int]:
        """R's rows and C's columns."""
        return {"rows": rank, "cols": rank}

    def multiply(self, shape: Shape, tensors: Tensors) -> Matrix:
        """C·U·R."""
        found = wide(tensors)
        return np.asarray(found["C"] @ found["U"] @ found["R"])

    def thin(self, tensors: Tensors) -> tuple[Matrix, Matrix]:
        """C and U·R."""
        found = wide(tensors)
        return found["C"], found["U"] @ found["R"]

    def link_outputs(self, tensors: Tensors) -> NDArray[Any]:
        """C."""
        return wide(tensors)["C"]

    def quantised(self, rank: int) -> tuple[str, ...]:
        """All, but for a small U."""
        return tuple(suffix for suffix in self.factors if suffix != "U" or rank > FLOAT_LINK_RANK)


FORM = CUR()
