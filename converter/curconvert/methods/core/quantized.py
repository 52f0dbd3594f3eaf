"""Makes the tasks that quantize one block's factors and dense weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from curconvert.base.names import bias_of
from curconvert.base.plan import MatrixPlan
from curconvert.factorization.projection import Projection
from curconvert.factorization.projections import read_projections
from curconvert.factorization.types import Factorization
from curconvert.linalg.statistics import InputStatistics
from curconvert.methods.core.context import Context
from curconvert.options.quantization import Quantization
from curconvert.quantization.tasks import QuantizationTask


def quantization_tasks(
    quantization: Quantization,
    plans: Sequence[MatrixPlan],
    found: Mapping[str, Factorization],
    statistics: Mapping[str, InputStatistics],
    context: Context,
) -> Iterator[QuantizationTask]:
    """Read one block's linears, and yield the tasks that quantize them.

    Args:
        quantization: The requested quantization.
        plans: Plans of all the block's linears.
        found: Factors of the compressed ones, by weight name.
        statistics: Statistics of each one's input, by its name.
        context: The conversion; for a shared R, its evidence has the statistics of the other layer's input.

    Yields:
        Tasks, the largest first, so that the last ones to start are short.

    Raises:
        InputError: A weight is not finite, or does not fit the deployed dtype.
    """
    checkpoint, dtype = context.checkpoint, context.dtype
    parts = read_projections([plan.name for plan in plans], statistics, checkpoint, dtype)
    for plan in sorted(plans, key=lambda plan: -plan.parameters_after):
        name, part = plan.name, parts[plan.name]
        factors = found.get(name) or Factorization("dense", plan.shape, {"weight": part.weight}, 0, 0.0, 0.0)
        projection = part if factors.corrected_bias else Projection(part.weight, part.statistics)
        partner = None
        if plan.shared is not None:
            (other,) = (member for member in plan.shared.matrices if member != name)
            statistics_of_other = context.evidence.statistics_of([other])[other]
            bias = checkpoint.read(bias_of(other)) if projection.bias is not None else None
            partner = Projection(part.weight, statistics_of_other, bias).metric.gram
        yield QuantizationTask(
            name, factors, projection, quantization.of_matrix(name), dtype, context.settings.ridge, partner
        )  # fmt: skip
