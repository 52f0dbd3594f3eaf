"""`cur`: C·U·R, real columns and rows of the matrix and what links them."""

from __future__ import annotations

import numpy as np

from curconvert_runtime.format.forms.form import Form, Matrix, Shape, Tensors, wide


class CUR(Form):
    """`y = C (U (R x))`."""

    def multiply(self, shape: Shape, tensors: Tensors) -> Matrix:
        """C·U·R."""
        found = wide(tensors)
        return np.asarray(found["C"] @ found["U"] @ found["R"])


FORM = CUR(
    "cur", {"R": "rn", "U": "rr", "C": "mr"}, {"rows": "r", "cols": "r"}, slices={"C": (1, "cols"), "R": (0, "rows")}
)
