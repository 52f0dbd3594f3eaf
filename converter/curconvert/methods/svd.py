"""`--method svd`: the truncated SVD of the weights."""

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
class SVD(TwoFactor):
    """Approximates the weights by their truncated SVD."""

    name: ClassVar[str] = "svd"
    summary: ClassVar[str] = "two factors, best for the weights: the plain SVD"
    recorded: ClassVar[Mapping[str, str]] = {"form": "two_factor", "approximation": "svd"}

    def factors(
        self, wanted: Matrix, problem: Problem, settings: Settings, fisher_rows: Vector | None
    ) -> tuple[Matrix, Matrix]:
        """Return A and B; see `TwoFactor.factors`."""
        from curconvert.factorization.low_rank import plain

        return plain(wanted, problem.rank)


METHOD = SVD
