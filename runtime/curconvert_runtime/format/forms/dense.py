"""`dense`: the matrix as it was."""

from __future__ import annotations

from typing import ClassVar, Literal

from curconvert_runtime.format.forms.form import Form, Matrix, Shape, Tensors, wide
from curconvert_runtime.format.forms.shared import Shared


class Dense(Form):
    """`y = W x`; it has no rank, and none is looked at."""

    name = "dense"
    factors = ("weight",)
    bias: ClassVar[Literal["kept"]] = "kept"
    is_compressed = False

    def shapes(self, shape: Shape, rank: int, shared: Shared | None = None) -> dict[str, Shape]:
        """Weight (m, n)."""
        return {"weight": shape}

    def fits(self, shape: Shape, rank: int, shared: Shared | None = None) -> bool:
        """Always."""
        return True

    def multiply(self, shape: Shape, tensors: Tensors) -> Matrix:
        """The weight."""
        return wide(tensors)["weight"]


FORM = Dense()
