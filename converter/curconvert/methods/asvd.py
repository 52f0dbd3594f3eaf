"""`--method asvd`: the truncated SVD of the weight with columns scaled by their inputs (ASVD, arXiv 2312.05821)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from curconvert.methods.core.two_factor import TwoFactor
from curconvert.options.settings import Settings

if TYPE_CHECKING:
    from curconvert.base.types import Matrix, Vector
    from curconvert.factorization.types import Problem


@dataclass(frozen=True)
class ASVD(TwoFactor):
    """Approximates the weight with columns scaled by the size of their inputs (ASVD, arXiv 2312.05821)."""

    name: ClassVar[str] = "asvd"
    summary: ClassVar[str] = "two factors, best when each input is scaled by its size (ASVD, arXiv 2312.05821)"
    recorded: ClassVar[Mapping[str, str]] = {"form": "two_factor", "approximation": "asvd"}

    def factors(
        self, wanted: Matrix, problem: Problem, settings: Settings, fisher_rows: Vector | None
    ) -> tuple[Matrix, Matrix]:
        """Return A and B; see `TwoFactor.factors`."""
        from curconvert.factorization.low_rank import asvd

        return asvd(wanted, problem.statistics.rms, problem.rank)


METHOD = ASVD
