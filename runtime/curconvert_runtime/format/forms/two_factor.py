"""Defines form `two_factor`: the product of a tall matrix A and a wide matrix B."""

from __future__ import annotations

import numpy as np

from curconvert_runtime.format.forms.form import Form, Matrix, Shape, Tensors, wide


class TwoFactor(Form):
    """`y = A (B x)`."""

    def multiply(self, shape: Shape, tensors: Tensors) -> Matrix:
        """Return A·B, (m, n) float64."""
        found = wide(tensors)
        return np.asarray(found["A"] @ found["B"])


FORM = TwoFactor("two_factor", {"B": "rn", "A": "mr"})
