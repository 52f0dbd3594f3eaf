"""Emits the graph nodes that multiply by a matrix, for each compressed form."""

from __future__ import annotations

from curconvert.graph.forms import cur, interpolative, modular, sparse, two_factor
from curconvert.graph.forms.stored import FormEmitter

EMITTERS: dict[str, FormEmitter] = {
    "cur": cur.product,
    "interpolative": interpolative.product,
    "two_factor": two_factor.product,
    "modular_rows": modular.product,
    "modular_columns": modular.product,
    "sparse_rows": sparse.rows_product,
    "sparse_columns": sparse.columns_product,
}
"""Emitters by the form's name."""
