"""Parts of a matrix: some of its rows, or of its columns. They never hold more numbers than the matrix."""

from __future__ import annotations

from abc import ABC

import numpy as np

from curconvert_runtime.format.forms.form import Form, Matrix, Shape, Tensors, wide
from curconvert_runtime.format.forms.shared import Shared


class KeptRows(Form, ABC):
    """weight (r, n), and zeros in the other rows; all rows may be kept."""

    factors = ("weight",)
    kept = "rows"

    def shapes(self, shape: Shape, rank: int, shared: Shared | None = None) -> dict[str, Shape]:
        """Weight (r, n)."""
        return {"weight": (rank, shape[1])}

    def largest_rank(self, shape: Shape, shared: Shared | None = None) -> int:
        """M."""
        return shape[0]

    def multiply(self, shape: Shape, tensors: Tensors) -> Matrix:
        """The rows where they were."""
        whole = np.zeros(shape)
        whole[tensors[self.kept]] = wide(tensors)["weight"]
        return whole


class KeptColumns(Form, ABC):
    """weight (m, r), and zeros in the other columns; all columns may be kept."""

    factors = ("weight",)

    def shapes(self, shape: Shape, rank: int, shared: Shared | None = None) -> dict[str, Shape]:
        """Weight (m, r)."""
        return {"weight": (shape[0], rank)}

    def largest_rank(self, shape: Shape, shared: Shared | None = None) -> int:
        """N."""
        return shape[1]

    def multiply(self, shape: Shape, tensors: Tensors) -> Matrix:
        """The columns where they were."""
        assert self.kept is not None
        whole = np.zeros(shape)
        whole[:, tensors[self.kept]] = wide(tensors)["weight"]
        return whole
