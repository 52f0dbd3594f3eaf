"""Defines form `dense`: the uncompressed matrix."""

from __future__ import annotations

from curconvert_runtime.format.forms.form import Form, Matrix, Shape, Tensors, wide


class Dense(Form):
    """`y = W x`."""

    def multiply(self, shape: Shape, tensors: Tensors) -> Matrix:
        """Return the weight, (m, n) float64."""
        return wide(tensors)["weight"]


FORM = Dense("dense", {"weight": "mn"}, is_compressed=False)
