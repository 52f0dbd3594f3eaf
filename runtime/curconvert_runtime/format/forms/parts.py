"""Parts of a matrix: some of its rows, or of its columns. They never hold more numbers than the matrix.

The modular forms compute with the smaller width, so the linears of a module have them together: all list the same
neurons, ascending, and a bias beside `modular_rows` is stored for those rows too. The sparse forms stand between
vectors of the original's width and need no partner; a bias beside `sparse_rows` is whole and added after.
"""

from __future__ import annotations

import numpy as np

from curconvert_runtime.format.forms.form import Fault, Form, Matrix, Shape, Shared, Tensors, not_distinct, wide


class Part(Form):
    """`y = W[rows] x`, or `y = W' x[columns]`; W' makes up for the columns that are not there."""

    @property
    def axis(self) -> int:
        """0 where rows are kept, 1 where columns are."""
        return self.factors["weight"].index("r")

    def largest_rank(self, shape: Shape, shared: Shared | None = None) -> int:
        """All rows or columns may be kept."""
        return shape[self.axis]

    def multiply(self, shape: Shape, tensors: Tensors) -> Matrix:
        """The rows or columns where they were, and zeros elsewhere."""
        whole = np.zeros(shape)
        kept = tensors[str(self.kept)]
        whole[kept if self.axis == 0 else (slice(None), kept)] = wide(tensors)["weight"]
        return whole


class Sparse(Part):
    """`y = [W x; 0][order]`, or `y = W' x[order]`."""

    def index_fault(self, shape: Shape, rank: int, indices: Tensors, shared: Shared | None = None) -> Fault:
        """What is kept is distinct and ascending; of rows the order leads to them, and other outputs to the zero."""
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
