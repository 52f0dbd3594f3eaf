"""Defines form `interpolative`: r rows of the matrix, and the other rows as combinations of them.

It stores r(m + n − r) numbers, the degrees of freedom of any rank-r matrix (PIFA, arXiv 2501.19090). Two matrices can
share R: p of its r rows come from one matrix, r − p from the other. `order[rows]` are then their positions in R.
"""

from __future__ import annotations

import numpy as np

from curconvert_runtime.format.forms.form import Fault, Form, Matrix, Shape, Shared, Tensors, not_distinct, wide


class Interpolative(Form):
    """`y = [R x; T (R x)][order]`."""

    def largest_rank(self, shape: Shape, shared: Shared | None = None) -> int:
        """Return min(m − 1, n), so that T has at least one row; n if R is shared, which can have more than m rows."""
        m, n = shape
        return n if shared else min(m - 1, n)

    def fits(self, shape: Shape, rank: int, shared: Shared | None = None) -> bool:
        """Tell whether the rank fits. With a shared R, each matrix must have rows in R and at least one in T."""
        own = shared is None or 0 < shared.rows < min(shape[0], rank)
        return own and super().fits(shape, rank, shared)

    def index_fault(self, shape: Shape, rank: int, indices: Tensors, shared: Shared | None = None) -> Fault:
        """Return a fault unless `rows` and `order` are distinct and `order` maps each of `rows` to its place in R."""
        m, rows, order = shape[0], indices["rows"], indices["order"]
        places = m + rank - shared.rows if shared else m  # a shared R also has rows of the other matrix
        if fault := not_distinct("rows", rows, m) or not_distinct("order", order, places):
            return fault
        if shared:
            leads = not ((order[rows] >= rank).any() or (np.delete(order, rows) < rank).any())
        else:
            leads = np.array_equal(order[rows], np.arange(len(rows)))
        return None if leads else ("order", "does not lead to the rows")

    def multiply(self, shape: Shape, tensors: Tensors) -> Matrix:
        """Return [R; T·R][order], (m, n) float64."""
        found = wide(tensors)
        return np.asarray(np.concatenate([found["R"], found["T"] @ found["R"]])[tensors["order"]])


FORM = Interpolative(
    "interpolative", {"R": "rn", "T": "qr"}, {"rows": "p", "order": "m"}, common="R", slices={"R": (0, "rows")}
)
