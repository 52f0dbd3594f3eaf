"""Base of methods that factorize each matrix on its own, and the task for one matrix."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from curconvert.methods.core.method import Method
from curconvert.options.settings import Settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from curconvert.base.plan import MatrixPlan
    from curconvert.base.types import Vector
    from curconvert.factorization.types import Factorization, FactorTask, Problem
    from curconvert.linalg.statistics import InputStatistics
    from curconvert.methods.core.context import Context


@dataclass(frozen=True)
class Matrixwise(Method):
    """Factorizes each matrix on its own."""

    def tasks(
        self, plans: Sequence[MatrixPlan], statistics: Mapping[str, InputStatistics], context: Context
    ) -> Iterator[FactorTask]:
        """Read one block's matrices and yield a task for each; see `Method.tasks`."""
        from curconvert.factorization.projections import largest_first, read_projections

        names = [plan.name for plan in plans]
        parts = read_projections(names, statistics, context.checkpoint, context.dtype, corrected=self.full_metric)
        for plan in largest_first(plans):
            rows = context.evidence.fisher_rows(plan.name) if self.needs.fisher_rows else None
            part = parts[plan.name]
            yield MatrixTask(
                plan, part.weight, part.bias, part.statistics, self, context.settings, context.dtype, rows
            )  # fmt: skip

    @abstractmethod
    def factorize(self, problem: Problem, settings: Settings, fisher_rows: Vector | None) -> Factorization:
        """Return the factors of one matrix.

        Args:
            problem: The matrix, the statistics of its input, and its rank.
            settings: Ridge, seed and device.
            fisher_rows: Fisher information of each row, (m,); None unless the method needs it.

        Raises:
            InputError: No matrix of this shape has this rank.
        """


@dataclass(frozen=True)
class MatrixTask:
    """Factorizes one matrix with a method, and corrects its bias.

    Attributes:
        plan: The matrix with its rank.
        weight: W, (out_features, in_features), any float dtype.
        bias: The bias to correct, (out_features,); None if there is none, or if it must not change.
        statistics: Statistics of the input.
        method: Computes the factors.
        settings: Ridge, seed and device.
        dtype: Deployed dtype.
        fisher_rows: Fisher information of each row, (out_features,); None unless the method needs it.
    """

    plan: MatrixPlan
    weight: Tensor
    bias: Tensor | None
    statistics: InputStatistics
    method: Matrixwise
    settings: Settings
    dtype: torch.dtype
    fisher_rows: Vector | None = None

    def run(self) -> dict[str, Factorization]:
        """Return the factors, with their bias, by the weight's name.

        Raises:
            InputError: A factor does not fit the deployed dtype.
            BackendError: A LAPACK routine did not converge.
        """
        from curconvert.factorization.drift import drift_corrected
        from curconvert.factorization.projection import Projection
        from curconvert.factorization.tasks import lapack, stored
        from curconvert.factorization.types import Problem

        name, rank = self.plan.name, self.plan.rank
        assert rank is not None
        with lapack(name):
            projection, target = drift_corrected(
                Projection(self.weight, self.statistics, self.bias), self.settings.ridge
            )
            problem = Problem(name, self.weight, projection.metric, rank, self.dtype, self.plan.form, target)
            factors = self.method.factorize(problem, self.settings, self.fisher_rows)
        factors = replace(factors, teacher_share=projection.teacher_share)
        return {name: stored(name, factors, projection, self.dtype)}
