"""`--method pifa`: SVD-LLM's best rank-r matrix on the calibration text, in PIFA's storage (arXiv 2501.19090)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from curconvert.methods.core.interpolative import Interpolative
from curconvert.options.settings import Settings

if TYPE_CHECKING:
    from curconvert.base.types import Vector
    from curconvert.factorization.types import Factorization, Problem


@dataclass(frozen=True)
class PIFA(Interpolative):
    """Stores SVD-LLM's optimum as rows and coefficients."""

    name: ClassVar[str] = "pifa"
    summary: ClassVar[str] = "the same product as svd-llm, stored in fewer numbers (PIFA, arXiv 2501.19090)"
    recorded: ClassVar[Mapping[str, str]] = {"form": "interpolative", "approximation": "subspace"}

    def factorize(self, problem: Problem, settings: Settings, fisher_rows: Vector | None) -> Factorization:
        """Return the factors of one matrix; see `Matrixwise.factorize`."""
        from curconvert.factorization.interpolative import factorize_subspace

        return factorize_subspace(problem, settings.ridge)


METHOD = PIFA
