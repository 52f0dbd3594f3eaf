"""Defines forms that keep only some rows or columns of a matrix.

The modular forms compute with the smaller width, so all linears of a module must use them. All list the same neurons,
ascending, and a bias of `modular_rows` has only these rows. The sparse forms keep the original's input and output
width, so each linear can use them alone. A bias of `sparse_rows` keeps its full length and is added at the end.
"""

from __future__ import annotations

import numpy as np

from curconvert_runtime.format.forms.form import Fault, Form, Matrix, Shape, Shared, Tensors, not_distinct, wide


class Part(Form):
    """`y = W[rows] x`, or `y = W' x[columns]`; W' compensates for the dropped columns."""

    @property
    def axis(self) -> int:
        """0 if the form keeps rows, 1 if it keeps columns."""
        return self.factors["weight"].index("r")

    def largest_rank(self, shape: Shape, shared: Shared | None = None) -> int:
        """Return the number of all rows or columns."""
        return shape[self.axis]

    def multiply(self, shape: Shape, tensors: Tensors) -> Matrix:
        """Return the kept rows or columns in their original places, and zeros elsewhere, (m, n) float64."""
        whole = np.zeros(shape)
        kept = tensors[str(self.kept)]
        whole[kept if self.axis == 0 else (slice(None), kept)] = wide(tensors)["weight"]
        return whole


class Sparse(Part):
    """`y = [W x; 0][order]`, or `y = W' x[order]`."""

    def index_fault(self, shape: Shape, rank: int, indices: Tensors, shared: Shared | None = None) -> Fault:
        """Return a fault unless kept indices are distinct and ascending, and `order` maps dropped outputs to zero."""
        suffix = str(self.kept)
        kept, order = indices[suffix], indices["order"]
        if fault := not_distinct(suffix, kept, shape[self.axis]):
            return fault
        if (np.diff(kept) < 0).any():
            return suffix, "is not ascending"
        if self.axis == 0 and not np.array_equal(order[kept], np.arange(len(kept))):
            return "order", "does not lead to the rows"
        if self.axis == 0 and (np.delete(order, kept) != len(kept)).any():
            return "order", f"must be {len(kept)} for every dropped output"
        return None


_ROWS = {"weight": (0, "rows")}
MODULAR_ROWS = Part(
    "modular_rows", {"weight": "rn"}, {"rows": "r"}, kept="rows", joint=True, cuts_outputs=True, slices=_ROWS
)
MODULAR_COLUMNS = Part("modular_columns", {"weight": "mr"}, {"cols": "r"}, kept="cols", joint=True)
SPARSE_ROWS = Sparse("sparse_rows", {"weight": "rn"}, {"rows": "r", "order": "m"}, kept="rows", slices=_ROWS)
SPARSE_COLUMNS = Sparse("sparse_columns", {"weight": "mr"}, {"order": "r"}, kept="order")
