"""`sparse_rows`, `sparse_columns`: some rows or columns of a matrix, between vectors of the original's width.

| form | factors | indices | Ŵ |
|---|---|---|---|
| `sparse_rows` | weight (r, n) | rows (r), order (m) | the rows where they were, zeros elsewhere |
| `sparse_columns` | weight (m, r) | order (r) | the columns where they were, zeros elsewhere |

Unlike the modular forms they need no partner. Output i of `sparse_rows` is element `order[i]` of [weight·x; 0], so
`order[rows[k]] = k` and all other elements are r; its bias is whole and added after. `sparse_columns` is
weight·x[order]. Rows and columns are ascending.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import ClassVar, Literal

import numpy as np

from curconvert_runtime.format.forms.form import Fault, Matrix, Shape, Tensors, first_fault, not_ascending, not_distinct
from curconvert_runtime.format.forms.part import KeptColumns, KeptRows
from curconvert_runtime.format.forms.shared import Shared


class SparseRows(KeptRows):
    """`y = [W x; 0][order]`."""

    name = "sparse_rows"
    read = ("order",)
    bias: ClassVar[Literal["kept"]] = "kept"
    has_basis = True
    slices = MappingProxyType({"weight": (0, "rows")})

    def index_lengths(self, shape: Shape, rank: int, shared: Shared | None = None) -> dict[str, int]:
        """The kept rows, and where each output is."""
        return {"rows": rank, "order": shape[0]}

    def index_fault(self, shape: Shape, rank: int, indices: Tensors, shared: Shared | None = None) -> Fault:
        """Rows are distinct and ascending; the order leads to them, and every dropped output to the zero."""
        rows, order = indices["rows"], indices["order"]
        fault = first_fault((not_distinct("rows", rows, shape[0]), not_ascending("rows", rows)))
        if fault is None and not np.array_equal(order[rows], np.arange(len(rows))):
            fault = "order", "does not lead to the rows"
        if fault is None and (np.delete(order, rows) != len(rows)).any():
            fault = "order", f"must be {len(rows)} for every dropped output"
        return fault


class SparseColumns(KeptColumns):
    """`y = W' x[order]`."""

    name = "sparse_columns"
    read = ("order",)
    bias: ClassVar[Literal["kept"]] = "kept"
    kept = "order"

    def index_lengths(self, shape: Shape, rank: int, shared: Shared | None = None) -> dict[str, int]:
        """The kept columns."""
        return {"order": rank}

    def index_fault(self, shape: Shape, rank: int, indices: Tensors, shared: Shared | None = None) -> Fault:
        """Columns are distinct and ascending."""
        order = indices["order"]
        return first_fault((not_distinct("order", order, shape[1]), not_ascending("order", order)))

    def seen(self, gram: Matrix, tensors: Tensors) -> None:
        """Unknown: the inputs of a smaller o_proj are new combinations of the values."""


ROWS, COLUMNS = SparseRows(), SparseColumns()
