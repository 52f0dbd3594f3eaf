"""Reads linears from a checkpoint, and pairs them with the statistics of their inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from curconvert.base.errors import InputError
from curconvert.base.finite import all_finite, not_finite
from curconvert.base.names import bias_of
from curconvert.base.plan import MatrixPlan
from curconvert.checkpoint.types import Checkpoint
from curconvert.factorization.projection import Projection
from curconvert.linalg.statistics import InputStatistics


def read_projections(
    names: Sequence[str],
    statistics: Mapping[str, InputStatistics],
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    *,
    corrected: bool = True,
) -> dict[str, Projection]:
    """Read linears by weight name, with their biases only if `corrected`.

    All are read before the first task starts, in the order in which the model computes them. So an error names a weight
    that overflows, not a later one that reads its outputs.

    Raises:
        InputError: A weight, a bias or the statistics of an input are not finite.
    """
    found = {}
    for name in names:
        parts = {part: checkpoint.read(part) for part in (name, bias_of(name)) if part in checkpoint.tensors}
        for part, tensor in parts.items():
            if not all_finite(tensor.to(dtype)):
                raise InputError(not_finite(part, tensor, dtype))
        if not statistics[name].finite:
            raise InputError(f"{name}: its inputs overflow on the calibration text; an earlier weight is damaged")
        found[name] = Projection(parts[name], statistics[name], parts.get(bias_of(name)) if corrected else None)
    return found


def largest_first(plans: Sequence[MatrixPlan]) -> list[MatrixPlan]:
    """Return matrices in the order in which their tasks start, the largest first: the last tasks are then short."""
    return sorted(plans, key=lambda plan: -plan.parameters_before)
