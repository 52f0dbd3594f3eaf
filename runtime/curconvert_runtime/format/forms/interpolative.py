"""`interpolative`: some rows, and the others as combinations of them.

| factors | indices | Ŵ |
|---|---|---|
| R (r, n), T (m − r, r) | rows (r), order (m) | [R; T·R][order] |

It stores r(m + n − r) numbers, the degrees of freedom of a rank-r matrix: the chosen outputs are `R x` as it is, the
others need a second product (PIFA, arXiv 2501.19090, stores any rank-r matrix so).
Output i of the layer is element `order[i]` of the two products laid end to end, so `order[rows[k]] = k`.

Two matrices may have one R (`Shared`), r rows of both together: p of them are rows of the one matrix and r − p of the
other. Then T is (m − p, r), rows is (p), and `order[rows]` are the p places among R's r.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curconvert_runtime.format.forms.form import Fault, Form, Matrix, Shape, Tensors, first_fault, not_distinct, wide
from curconvert_runtime.format.forms.shared import Shared


class Interpolative(Form):
    """`y = [R x; T (R x)][order]`."""

    name = "interpolative"
    factors = ("R", "T")
    read = ("order",)
    linking = "T"
    common = "R"
    nested = True
    has_basis = True
    slices = MappingProxyType({"R": (0, "rows")})

    def shapes(self, shape: Shape, rank: int, shared: Shared | None = None) -> dict[str, Shape]:
        """R (r, n), T (m − r, r)."""
        return {"R": (rank, shape[1]), "T": (shape[0] - (shared.rows if shared else rank), rank)}

    def index_lengths(self, shape: Shape, rank: int, shared: Shared | None = None) -> dict[str, int]:
        """The outputs that are R's, and where each output is."""
        return {"rows": shared.rows if shared else rank, "order": shape[0]}

    def largest_rank(self, shape: Shape, shared: Shared | None = None) -> int:
        """T has a row at least; a common R may have more rows than either matrix."""
        m, n = shape
        return n if shared else min(m - 1, n)

    def fits(self, shape: Shape, rank: int, shared: Shared | None = None) -> bool:
        """Of a common R both matrices have rows, and T too."""
        own = shared is None or 0 < shared.rows < min(shape[0], rank)
        return own and super().fits(shape, rank, shared)

    def break_even_rank(self, shape: Shape) -> int:
        """r(m + n − r) ≤ mn up to min(m, n)."""
        return min(shape)

    def index_fault(self, shape: Shape, rank: int, indices: Tensors, shared: Shared | None = None) -> Fault:
        """Rows and places are distinct, and the order leads to the rows."""
        m, rows, order = shape[0], indices["rows"], indices["order"]
        places = m + rank - shared.rows if shared else m  # between R's rows are those of the other matrix
        fault = first_fault((not_distinct("rows", rows, m), not_distinct("order", order, places)))
        if fault is None:
            if shared:
                leads = not ((order[rows] >= rank).any() or (np.delete(order, rows) < rank).any())
            else:
                leads = np.array_equal(order[rows], np.arange(len(rows)))
            fault = None if leads else ("order", "does not lead to the rows")
        return fault

    def multiply(self, shape: Shape, tensors: Tensors) -> Matrix:
        """[R; T·R][order]."""
        found = wide(tensors)
        return np.asarray(np.concatenate([found["R"], found["T"] @ found["R"]])[tensors["order"]])

    def thin(self, tensors: Tensors) -> tuple[Matrix, Matrix]:
        """[I; T][order] and R."""
        found = wide(tensors)
        return np.concatenate([np.eye(len(found["R"])), found["T"]])[tensors["order"]], found["R"]

    def link_outputs(self, tensors: Tensors) -> NDArray[Any]:
        """The outputs that are rows of T, in its order."""
        return np.argsort(tensors["order"])[-len(tensors["T"]) :]


FORM = Interpolative()
