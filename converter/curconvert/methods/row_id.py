"""`--method row-id`: rows of W, and coefficients that combine their outputs to the other outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from curconvert.methods.core.costs import Cost, of_rows
from curconvert.methods.core.interpolative import Interpolative
from curconvert.options.settings import Settings

if TYPE_CHECKING:
    from curconvert.base.plan import MatrixPlan
    from curconvert.base.types import Vector
    from curconvert.factorization.types import Factorization, Problem


@dataclass(frozen=True)
class RowID(Interpolative):
    """Factorizes by an interpolative decomposition whose rows are rows of W."""

    name: ClassVar[str] = "row-id"
    summary: ClassVar[str] = "keeps real rows of W and computes the other outputs from theirs"
    recorded: ClassVar[Mapping[str, str]] = {"form": "interpolative", "approximation": "rows"}

    def factorize(self, problem: Problem, settings: Settings, fisher_rows: Vector | None) -> Factorization:
        """Return the factors of one matrix; see `Matrixwise.factorize`."""
        from curconvert.factorization.interpolative import factorize_rows

        return factorize_rows(problem, settings.ridge, settings.seed)

    def cost(self, matrix: MatrixPlan, tokens: int) -> Cost:
        """See `Method.cost`."""
        return of_rows(matrix, tokens)


METHOD = RowID
