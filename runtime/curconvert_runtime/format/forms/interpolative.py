"""`interpolative`: some rows, and the others as combinations of them.

It stores r(m + n − r) numbers, the degrees of freedom of a rank-r matrix (PIFA, arXiv 2501.19090, stores any rank-r
matrix so). Two matrices may have one R, r rows of both together: p of them are rows of the one matrix and r − p of the
other, and `order[rows]` are the p places among R's r.
"""

from __future__ import annotations

import numpy as np

from curconvert_runtime.format.forms.form import Fault, Form, Matrix, Shape, Shared, Tensors, not_distinct, wide


class Interpolative(Form):
    """`y = [R x; T (R x)][order]`."""

    def largest_rank(self, shape: Shape, shared: Shared | None = None) -> int:
        """T has a row at least; a common R may have more rows than either matrix."""
        m, n = shape
        return n if shared else min(m - 1, n)

    def fits(self, shape: Shape, rank: int, shared: Shared | None = None) -> bool:
        """Of a common R both matrices have rows, and T too."""
        own = shared is None or 0 < shared.rows < min(shape[0], rank)
        return own and super().fits(shape, rank, shared)

    def index_fault(self, shape: Shape, rank: int, indices: Tensors, shared: Shared | None = None) -> Fault:
        """Rows and places are distinct, and the order leads to the rows."""
        m, rows, order = shape[0], indices["rows"], indices["order"]
        places = m + rank - shared.rows if shared else m  # between R's rows are those of the other matrix
        if fault := not_distinct("rows", rows, m) or not_distinct("order", order, places):
            return fault
        if shared:
            leads = not ((order[rows] >= rank).any() or (np.delete(order, rows) < rank).any())
        else:
            leads = np.array_equal(order[rows], np.arange(len(rows)))
        return None if leads else ("order", "does not lead to the rows")

    def multiply(self, shape: Shape, tensors: Tensors) -> Matrix:
        """[R; T·R][order]."""
        found = wide(tensors)
        return np.asarray(np.concatenate([found["R"], found["T"] @ found["R"]])[tensors["order"]])


FORM = Interpolative(
    "interpolative", {"R": "rn", "T": "qr"}, {"rows": "p", "order": "m"}, common="R", slices={"R": (0, "rows")}
)
