"""The nodes that multiply by a matrix, for each form; a dense matrix is the template's own initializer."""

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
"""By the form's name."""
