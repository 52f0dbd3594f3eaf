"""The forms in which a matrix can be stored: which tensors, of which shapes, and how they multiply.

| form | factors | indices | Ŵ |
|---|---|---|---|
| `cur` | C (m, r), U (r, r), R (r, n) | rows (r), cols (r) | C·U·R |
| `interpolative` | R (r, n), T (m − r, r) | rows (r), order (m) | [R; T·R][order] |
| `two_factor` | A (m, r), B (r, n) | | A·B |
| `modular_rows` | weight (r, n) | rows (r) | the rows where they were, zeros elsewhere |
| `modular_columns` | weight (m, r) | cols (r) | the columns where they were, zeros elsewhere |
| `sparse_rows` | weight (r, n) | rows (r), order (m) | the rows where they were, zeros elsewhere |
| `sparse_columns` | weight (m, r) | order (r) | the columns where they were, zeros elsewhere |

`interpolative` stores r(m + n − r) numbers, the degrees of freedom of a rank-r matrix: the chosen outputs are `R x` as
it is and only the others need a second product (PIFA, arXiv 2501.19090, stores any rank-r matrix so).
Output i of the layer is element `order[i]` of the two products laid end to end, so `order[rows[k]] = k`.

The modular forms are parts of one module, an MLP that keeps r of its neurons: `MODULAR` names its three linears. All
three list the same neurons, ascending. A bias of a `modular_rows` linear is stored for those rows too, so (r,).

The sparse forms need no partner: they take and give vectors of the original's width. Output i of `sparse_rows` is
element `order[i]` of [weight·x; 0], so `order[rows[k]] = k` and all other elements are r; its bias is whole and added
after. `sparse_columns` is weight·x[order]. Rows and columns are ascending.

Two `interpolative` matrices may have one R (`Shared`), r rows of both together: p of them are rows of the one matrix
and r − p of the other. Then T is (m − p, r), rows is (p), and `order[rows]` are the p places among R's r.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMS = (
    "cur", "interpolative", "two_factor", "modular_rows", "modular_columns", "sparse_rows", "sparse_columns",
)  # fmt: skip
MODULAR = {"gate_proj": "modular_rows", "up_proj": "modular_rows", "down_proj": "modular_columns"}
"""The linears of a smaller MLP, each with its form: they are stored so together or not at all."""
SPARSE = {"q_proj": "sparse_rows", "k_proj": "sparse_rows", "v_proj": "sparse_rows", "o_proj": "sparse_columns"}
"""The linears of an attention whose heads keep some of their dimensions, each with its form."""
INDICES = ("rows", "cols", "order")
"""Suffixes of the int32 vectors."""
PROVENANCE = (".rows", ".cols")
"""Endings of the tensors that say where factors come from; the product does not need them, so no graph reads them."""


@dataclass(frozen=True)
class Shared:
    """What one of two `interpolative` matrices with a common R adds to its form.

    Attributes:
        matrices: Both weight names; R is stored under the first one's.
        rows: p, how many of R's rows are rows of this matrix.
    """

    matrices: tuple[str, str]
    rows: int

    @classmethod
    def of(cls, matrix: Mapping[str, Any]) -> Shared | None:
        """Read it from a row of the manifest; None where R is the matrix's own."""
        found = matrix.get("shared")
        return None if found is None else cls((found["matrices"][0], found["matrices"][1]), found["rows"])

    def to_json(self) -> dict[str, Any]:
        """Return what `of` reads."""
        return {"matrices": list(self.matrices), "rows": self.rows}


def factor_shapes(
    form: str, shape: tuple[int, int], rank: int, shared: Shared | None = None
) -> dict[str, tuple[int, int]]:
    """Return the factors by suffix; (out_features, in_features) layout.

    Args:
        form: One of `FORMS`.
        shape: (m, n) of the matrix.
        rank: r.
        shared: Of an `interpolative` matrix whose R is another's too.

    Raises:
        ValueError: The form is unknown.
    """
    (m, n), r = shape, rank
    if form == "cur":
        return {"C": (m, r), "U": (r, r), "R": (r, n)}
    if form == "interpolative":
        return {"R": (r, n), "T": (m - (shared.rows if shared else r), r)}
    if form == "two_factor":
        return {"A": (m, r), "B": (r, n)}
    if form in ("modular_rows", "sparse_rows"):
        return {"weight": (r, n)}
    if form in ("modular_columns", "sparse_columns"):
        return {"weight": (m, r)}
    raise ValueError(f"form {form!r}: expected one of {', '.join(FORMS)}")


def index_lengths(form: str, shape: tuple[int, int], rank: int, shared: Shared | None = None) -> dict[str, int]:
    """Return the stored int32 index vectors by suffix; they are not parameters."""
    lengths = {
        "cur": {"rows": rank, "cols": rank},
        "interpolative": {"rows": shared.rows if shared else rank, "order": shape[0]},
        "modular_rows": {"rows": rank},
        "modular_columns": {"cols": rank},
        "sparse_rows": {"rows": rank, "order": shape[0]},
        "sparse_columns": {"order": rank},
    }
    return lengths.get(form, {})


def factor_name(weight: str, suffix: str) -> str:
    """Name of a factor: `….q_proj.weight` and `C` give `….q_proj.C`."""
    return f"{weight.removesuffix('weight')}{suffix}"


def tensor_names(
    name: str, form: str, shape: tuple[int, int], rank: int, shared: Shared | None = None
) -> dict[str, str]:
    """Return the names of the stored tensors that a matrix is made of, by suffix; a common R has its owner's name."""
    suffixes = [*factor_shapes(form, shape, rank, shared), *index_lengths(form, shape, rank, shared)]
    owners = {"R": shared.matrices[0]} if shared else {}
    return {suffix: factor_name(owners.get(suffix, name), suffix) for suffix in suffixes}


def largest_rank(form: str, shape: tuple[int, int], shared: Shared | None = None) -> int:
    """Return the largest rank that a form can have; a modular or sparse form may keep all of its rows or columns."""
    m, n = shape
    if shared:
        return n
    if form == "interpolative":
        return min(m - 1, n)
    if keeps_part(form):
        return m if form.endswith("_rows") else n
    return min(m, n)


def keeps_part(form: str) -> bool:
    """Tell whether a form is some rows or columns of a matrix: it then never holds more numbers than the matrix."""
    return form.startswith(("modular_", "sparse_"))


def is_index(name: str) -> bool:
    """Tell whether a stored tensor's name is that of an index vector."""
    return name.rpartition(".")[2] in INDICES


def parameters(
    form: str, shape: tuple[int, int], rank: int, shared: Shared | None = None, name: str | None = None
) -> int:
    """Count the stored numbers of all factors; a common R counts for its owner.

    Args:
        form: One of `FORMS`.
        shape: (m, n).
        rank: r.
        shared: Of an `interpolative` matrix whose R is another's too.
        name: The weight's; matters only then.
    """
    shapes = factor_shapes(form, shape, rank, shared)
    if shared and name != shared.matrices[0]:
        del shapes["R"]
    return sum(rows * columns for rows, columns in shapes.values())


def index_fault(
    form: str, shape: tuple[int, int], rank: int, indices: Mapping[str, NDArray[Any]], shared: Shared | None = None
) -> tuple[str, str] | None:
    """Look for what is wrong with a matrix's index vectors.

    Args:
        form: One of `FORMS`.
        shape: (m, n).
        rank: r.
        indices: The stored vectors by suffix, of the lengths of `index_lengths`.
        shared: Of an `interpolative` matrix whose R is another's too.

    Returns:
        The suffix and what is wrong, or None.
    """
    m, n = shape
    sparse = form.startswith("sparse_")
    for suffix, values in indices.items():
        if form == "sparse_rows" and suffix == "order":
            continue  # dropped outputs share one element; see below
        size = n if suffix == "cols" or form == "sparse_columns" else m
        if shared and suffix == "order":
            size += rank - shared.rows  # between R's rows are those of the other matrix
        if values.min() < 0 or values.max() >= size or len(np.unique(values)) != len(values):
            return suffix, f"must hold distinct indices below {size}"
        if sparse and (np.diff(values) < 0).any():
            return suffix, "is not ascending"
    if "rows" in indices and "order" in indices:
        rows, order = indices["rows"], indices["order"]
        if shared:
            if (order[rows] >= rank).any() or (np.delete(order, rows) < rank).any():
                return "order", "does not lead to the rows"
        elif not np.array_equal(order[rows], np.arange(len(rows))):
            return "order", "does not lead to the rows"
        if sparse and (np.delete(order, rows) != len(rows)).any():
            return "order", f"must be {len(rows)} for every dropped output"
    return None


def multiply(form: str, shape: tuple[int, int], tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Multiply the factors out, or put kept rows or columns where they were: (m, n) float64.

    Args:
        form: One of `FORMS`, or `dense`.
        shape: (m, n).
        tensors: The stored tensors by suffix.
    """
    wide = {suffix: np.asarray(tensor, dtype=np.float64) for suffix, tensor in tensors.items() if suffix not in INDICES}
    if form == "dense":
        return wide["weight"]
    if form == "cur":
        return np.asarray(wide["C"] @ wide["U"] @ wide["R"])
    if form == "interpolative":
        return np.asarray(np.concatenate([wide["R"], wide["T"] @ wide["R"]])[tensors["order"]])
    if keeps_part(form):
        whole = np.zeros(shape)
        if form.endswith("_rows"):
            whole[tensors["rows"]] = wide["weight"]
        else:
            whole[:, tensors["cols" if form == "modular_columns" else "order"]] = wide["weight"]
        return whole
    return np.asarray(wide["A"] @ wide["B"])
