"""`dense`: the matrix as it was."""

from __future__ import annotations

from curconvert_runtime.format.forms.form import Form, Matrix, Shape, Tensors, wide


class Dense(Form):
    """`y = W x`."""

    def multiply(self, shape: Shape, tensors: Tensors) -> Matrix:
        """The weight."""
        return wide(tensors)["weight"]


FORM = Dense("dense", {"weight": "mn"}, is_compressed=False)
