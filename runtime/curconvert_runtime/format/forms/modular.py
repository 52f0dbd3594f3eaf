"""`modular_rows`, `modular_columns`: the linears of an MLP that keeps r of its neurons.

| form | factors | indices | Ŵ |
|---|---|---|---|
| `modular_rows` | weight (r, n) | rows (r) | the rows where they were, zeros elsewhere |
| `modular_columns` | weight (m, r) | cols (r) | the columns where they were, zeros elsewhere |

They are parts of one module and compute with its smaller width: `curconvert_runtime.format.modules` names its linears.
All of them list the same neurons, ascending. A bias beside `modular_rows` is stored for those rows too, so (r,).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import ClassVar, Literal

import numpy as np

from curconvert_runtime.format.forms.form import Matrix, Shape, Tensors
from curconvert_runtime.format.forms.part import KeptColumns, KeptRows
from curconvert_runtime.format.forms.shared import Shared


class ModularRows(KeptRows):
    """`y = W[rows] x`, r outputs."""

    name = "modular_rows"
    bias: ClassVar[Literal["cut"]] = "cut"
    joint = True
    slices = MappingProxyType({"weight": (0, "rows")})

    def index_lengths(self, shape: Shape, rank: int, shared: Shared | None = None) -> dict[str, int]:
        """The kept rows."""
        return {"rows": rank}


class ModularColumns(KeptColumns):
    """`y = W' x`, r inputs; W' makes up for the columns that are not there."""

    name = "modular_columns"
    kept = "cols"
    joint = True

    def index_lengths(self, shape: Shape, rank: int, shared: Shared | None = None) -> dict[str, int]:
        """The kept columns."""
        return {"cols": rank}

    def seen(self, gram: Matrix, tensors: Tensors) -> Matrix:
        """That of the kept inputs."""
        kept = tensors["cols"]
        return np.asarray(gram[np.ix_(kept, kept)])


ROWS, COLUMNS = ModularRows(), ModularColumns()
