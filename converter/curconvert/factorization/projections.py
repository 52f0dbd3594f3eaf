"""Linears with the statistics of their inputs, read from a checkpoint."""

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
    """Read linears, without biases where these are not to be corrected, refusing numbers that are not finite.

    All before the first task, in the order in which they compute: a weight that overflows is named before what reads
    its outputs.
    """
    found = {}
    for name in names:
        parts = {part: checkpoint.read(part) for part in (name, bias_of(name)) if part in checkpoint.tensors}
        for part, tensor in parts.items():
            if not all_finite(tensor.to(dtype)):
                raise InputError(not_finite(part, tensor, dtype))
        if not statistics[name].finite:
            raise InputError(
                f"{name}: its inputs overflow on the calibration text; the checkpoint is damaged before it"
            )
        found[name] = Projection(parts[name], statistics[name], parts.get(bias_of(name)) if corrected else None)
    return found


def largest_first(plans: Sequence[MatrixPlan]) -> list[MatrixPlan]:
    """Return matrices in the order in which tasks of theirs start: the last ones are short."""
    return sorted(plans, key=lambda plan: -plan.parameters_before)
