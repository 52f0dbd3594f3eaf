"""`--method svd-llm`: the best low-rank approximation of the outputs (SVD-LLM, arXiv 2403.07378)."""

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
class SVDLLM(TwoFactor):
    """Approximates the outputs on the calibration text (SVD-LLM, arXiv 2403.07378)."""

    name: ClassVar[str] = "svd-llm"
    summary: ClassVar[str] = "two factors, best for the outputs on the calibration text (SVD-LLM, arXiv 2403.07378)"
    recorded: ClassVar[Mapping[str, str]] = {"form": "two_factor", "approximation": "svd_llm"}

    @property
    def full_metric(self) -> bool:
        """See `Method.full_metric`."""
        return True

    @property
    def compares_inputs(self) -> bool:
        """See `Method.compares_inputs`."""
        return True

    def factors(
        self, wanted: Matrix, problem: Problem, settings: Settings, fisher_rows: Vector | None
    ) -> tuple[Matrix, Matrix]:
        """Return A and B; see `TwoFactor.factors`."""
        from curconvert.factorization.low_rank import svd_llm
        from curconvert.linalg.metrics import FullMetric

        return svd_llm(wanted, FullMetric(problem.statistics, settings.ridge), problem.rank)


METHOD = SVDLLM
