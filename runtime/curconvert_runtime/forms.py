"""The forms in which a matrix can be stored: which tensors, of which shapes, and how they multiply.

| form | factors | indices | Ŵ |
|---|---|---|---|
| `cur` | C (m, r), U (r, r), R (r, n) | rows (r), cols (r) | C·U·R |
| `interpolative` | R (r, n), T (m − r, r) | rows (r), order (m) | [R; T·R][order] |
| `two_factor` | A (m, r), B (r, n) | | A·B |
| `modular_rows` | weight (r, n) | rows (r) | the rows where they were, zeros elsewhere |
| `modular_columns` | weight (m, r) | cols (r) | the columns where they were, zeros elsewhere |

`interpolative` stores r(m + n − r) numbers, the degrees of freedom of a rank-r matrix: the chosen outputs are `R x` as
it is and only the others need a second product (PIFA, arXiv 2501.19090, stores any rank-r matrix so).
Output i of the layer is element `order[i]` of the two products laid end to end, so `order[rows[k]] = k`.

The modular forms are parts of one module, an MLP that keeps r of its neurons: `MODULAR` names its three linears. All
three list the same neurons, ascending. A bias of a `modular_rows` linear is stored for those rows too, so (r,).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMS = ("cur", "interpolative", "two_factor", "modular_rows", "modular_columns")
MODULAR = {"gate_proj": "modular_rows", "up_proj": "modular_rows", "down_proj": "modular_columns"}
"""The linears of a smaller MLP, each with its form: they are stored so together or not at all."""
INDICES = ("rows", "cols", "order")
"""Suffixes of the int32 vectors."""
PROVENANCE = (".rows", ".cols")
"""Endings of the tensors that say where factors come from; the product does not need them, so no graph reads them."""


def factor_shapes(form: str, shape: tuple[int, int], rank: int) -> dict[str, tuple[int, int]]:
    """Return the stored factors by suffix; (out_features, in_features) layout.

    Args:
        form: One of `FORMS`.
        shape: (m, n) of the matrix.
        rank: r.

    Raises:
        ValueError: The form is unknown.
    """
    (m, n), r = shape, rank
    if form == "cur":
        return {"C": (m, r), "U": (r, r), "R": (r, n)}
    if form == "interpolative":
        return {"R": (r, n), "T": (m - r, r)}
    if form == "two_factor":
        return {"A": (m, r), "B": (r, n)}
    if form == "modular_rows":
        return {"weight": (r, n)}
    if form == "modular_columns":
        return {"weight": (m, r)}
    raise ValueError(f"form {form!r}: expected one of {', '.join(FORMS)}")


def index_lengths(form: str, shape: tuple[int, int], rank: int) -> dict[str, int]:
    """Return the stored int32 index vectors by suffix; they are not parameters."""
    lengths = {
        "cur": {"rows": rank, "cols": rank},
        "interpolative": {"rows": rank, "order": shape[0]},
        "modular_rows": {"rows": rank},
        "modular_columns": {"cols": rank},
    }
    return lengths.get(form, {})


def largest_rank(form: str, shape: tuple[int, int]) -> int:
    """Return the largest rank that a form can have; a modular form may keep all of its rows or columns."""
    m, n = shape
    limits = {"interpolative": min(m - 1, n), "modular_rows": m, "modular_columns": n}
    return limits.get(form, min(m, n))


def is_index(name: str) -> bool:
    """Tell whether a stored tensor's name is that of an index vector."""
    return name.rpartition(".")[2] in INDICES


def parameters(form: str, shape: tuple[int, int], rank: int) -> int:
    """Count the stored numbers of all factors."""
    return sum(rows * columns for rows, columns in factor_shapes(form, shape, rank).values())


def multiply(form: str, shape: tuple[int, int], tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """Multiply the factors out, or put kept rows or columns where they were: (m, n) float64.

    Args:
        form: One of `FORMS`.
        shape: (m, n).
        tensors: The stored tensors by suffix.
    """
    wide = {suffix: np.asarray(tensor, dtype=np.float64) for suffix, tensor in tensors.items() if suffix not in INDICES}
    if form == "cur":
        return np.asarray(wide["C"] @ wide["U"] @ wide["R"])
    if form == "interpolative":
        return np.asarray(np.concatenate([wide["R"], wide["T"] @ wide["R"]])[tensors["order"]])
    if form in ("modular_rows", "modular_columns"):
        whole = np.zeros(shape)
        whole[tensors["rows"] if form == "modular_rows" else np.s_[:, tensors["cols"]]] = wide["weight"]
        return whole
    return np.asarray(wide["A"] @ wide["B"])
