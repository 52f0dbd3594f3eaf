"""`--method fwsvd`: the truncated SVD with rows weighted by their Fisher information (FWSVD, arXiv 2207.00112)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from curconvert.methods.core.method import Needs
from curconvert.methods.core.two_factor import TwoFactor
from curconvert.options.settings import Settings

if TYPE_CHECKING:
    from curconvert.base.types import Matrix, Vector
    from curconvert.factorization.types import Problem


@dataclass(frozen=True)
class FWSVD(TwoFactor):
    """Approximates the weight with rows weighted by their Fisher information (FWSVD, arXiv 2207.00112)."""

    name: ClassVar[str] = "fwsvd"
    summary: ClassVar[str] = "two factors, best when rows are weighted by Fisher information (FWSVD, arXiv 2207.00112)"
    recorded: ClassVar[Mapping[str, str]] = {"form": "two_factor", "approximation": "fwsvd"}
    needs: ClassVar[Needs] = Needs(fisher_rows=True)

    def factors(
        self, wanted: Matrix, problem: Problem, settings: Settings, fisher_rows: Vector | None
    ) -> tuple[Matrix, Matrix]:
        """Return A and B; see `TwoFactor.factors`."""
        from curconvert.factorization.low_rank import fwsvd

        assert fisher_rows is not None
        return fwsvd(wanted, fisher_rows, problem.rank)


METHOD = FWSVD
