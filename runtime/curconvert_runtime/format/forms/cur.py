"""Defines form `cur`: C·U·R, with columns C and rows R of the matrix and a linking matrix U."""

from __future__ import annotations

import numpy as np

from curconvert_runtime.format.forms.form import Form, Matrix, Shape, Tensors, wide


class CUR(Form):
    """`y = C (U (R x))`."""

    def multiply(self, shape: Shape, tensors: Tensors) -> Matrix:
        """Return C·U·R, (m, n) float64."""
        found = wide(tensors)
        return np.asarray(found["C"] @ found["U"] @ found["R"])


FORM = CUR(
    "cur", {"R": "rn", "U": "rr", "C": "mr"}, {"rows": "r", "cols": "r"}, slices={"C": (1, "cols"), "R": (0, "rows")}
)
