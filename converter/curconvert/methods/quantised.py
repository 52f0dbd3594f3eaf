"""From one block's factors and dense weights to tasks that quantise them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from curconvert.base.names import bias_of
from curconvert.base.plan import MatrixPlan
from curconvert.calibration.evidence import Evidence
from curconvert.checkpoint.types import Checkpoint
from curconvert.factorization.projection import Projection
from curconvert.factorization.projections import read_projections
from curconvert.factorization.types import Factorization
from curconvert.linalg.statistics import InputStatistics
from curconvert.options.convert import ConvertOptions
from curconvert.quantization.tasks import QuantisationTask


def quantisation_tasks(
    plans: Sequence[MatrixPlan],
    found: Mapping[str, Factorization],
    statistics: Mapping[str, InputStatistics],
    checkpoint: Checkpoint,
    options: ConvertOptions,
    dtype: torch.dtype,
    evidence: Evidence,
) -> Iterator[QuantisationTask]:
    """Read what one block's quantisation needs.

    Args:
        plans: Of all the block's linears.
        found: Factors of those that are compressed.
        statistics: Of each one's input, by its name.
        checkpoint: Weights and biases.
        options: Method and quantisation.
        dtype: Deployed dtype of what stays float.
        evidence: Statistics of the other layer's input where R is common to two.

    Yields:
        The largest first: the last ones to start are short.

    Raises:
        InputError: A weight is not finite, or not in the deployed dtype.
    """
    assert options.quantization is not None
    parts = read_projections([plan.name for plan in plans], statistics, checkpoint, dtype)
    for plan in sorted(plans, key=lambda plan: -plan.parameters_after):
        name, part = plan.name, parts[plan.name]
        factors = found.get(name) or Factorization("dense", plan.shape, {"weight": part.weight}, 0, 0.0, 0.0)
        projection = part if factors.corrected_bias else Projection(part.weight, part.statistics)
        partner = None
        if plan.shared is not None:
            (other,) = (member for member in plan.shared.matrices if member != name)
            statistics_of_other = evidence.statistics_of([other])[other]
            bias = checkpoint.read(bias_of(other)) if projection.bias is not None else None
            partner = Projection(part.weight, statistics_of_other, bias).metric.gram
        yield QuantisationTask(
            name, factors, projection, options.quantization.of_matrix(name), dtype, options.ridge, partner
        )  # fmt: skip
