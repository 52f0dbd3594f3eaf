"""`two_factor`: the product of a tall matrix and a wide one.

| factors | indices | Ŵ |
|---|---|---|
| A (m, r), B (r, n) | | A·B |
"""

from __future__ import annotations

import numpy as np

from curconvert_runtime.format.forms.form import Form, Matrix, Shape, Tensors, wide
from curconvert_runtime.format.forms.shared import Shared


class TwoFactor(Form):
    """`y = A (B x)`."""

    name = "two_factor"
    factors = ("B", "A")

    def shapes(self, shape: Shape, rank: int, shared: Shared | None = None) -> dict[str, Shape]:
        """A (m, r), B (r, n)."""
        return {"A": (shape[0], rank), "B": (rank, shape[1])}

    def multiply(self, shape: Shape, tensors: Tensors) -> Matrix:
        """A·B."""
        found = wide(tensors)
        return np.asarray(found["A"] @ found["B"])

    def thin(self, tensors: Tensors) -> tuple[Matrix, Matrix]:
        """A and B."""
        found = wide(tensors)
        return found["A"], found["B"]


FORM = TwoFactor()
