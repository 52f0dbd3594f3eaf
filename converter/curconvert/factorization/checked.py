"""From planned matrices to tasks: weights and biases are read here, and what could not be stored is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from curconvert.allocation.evidence import Evidence
from curconvert.artifact.safetensors_writer import not_finite
from curconvert.blocks.heads import Heads
from curconvert.calibration.statistics import InputStatistics
from curconvert.checkpoint.types import Checkpoint
from curconvert.errors import InputError
from curconvert.execution.executor import Task
from curconvert.factorization.modular import Indices
from curconvert.factorization.projection import Projection
from curconvert.factorization.tasks import AllocatedTask, HeadsTask, MatrixTask, MLPTask, SharedTask
from curconvert.factorization.types import Factorization
from curconvert.options import ConvertOptions
from curconvert.planning import MatrixPlan, bias_of, linear_of
from curconvert_runtime.forms import MODULAR, SPARSE

FactorTask = Task[dict[str, Factorization]]
Vector = NDArray[np.float64]


def matrix_task(
    plan: MatrixPlan,
    checkpoint: Checkpoint,
    statistics: InputStatistics,
    options: ConvertOptions,
    dtype: torch.dtype,
    fisher_rows: Vector | None = None,
) -> MatrixTask:
    """Read one weight, refusing values that would make every later number meaningless.

    A bias beside it makes up for the mean of what is lost, where the method approximates in the full metric.

    Args:
        plan: Of the matrix.
        checkpoint: Its weight and bias.
        statistics: Of its input.
        options: Method and numerics.
        dtype: Deployed dtype.
        fisher_rows: Fisher information of each row, (out_features,); `fwsvd` only.

    Raises:
        InputError: The weight or its statistics are not finite, or the weight does not fit the deployed dtype.
    """
    part = _read(plan.name, checkpoint, statistics, dtype, corrected=options.full_metric)
    return MatrixTask(plan, part.weight, part.bias, statistics, options, dtype, fisher_rows)


def allocated_tasks(
    plans: Sequence[MatrixPlan],
    evidence: Evidence,
    checkpoint: Checkpoint,
    options: ConvertOptions,
    dtype: torch.dtype,
) -> Iterator[FactorTask]:
    """Read one block's matrices as an allocation planned them, each when its task is taken.

    Args:
        plans: Of the block's compressed matrices.
        evidence: Statistics of the original.
        checkpoint: Weights and biases.
        options: Its ridge.
        dtype: Deployed dtype.

    Yields:
        The MLP's task first: it takes longest.

    Raises:
        InputError: As `matrix_task`.
    """
    mlp = [plan for plan in plans if plan.form in MODULAR.values()]
    if mlp:
        inputs = evidence.statistics_of(plan.name for plan in mlp)
        (down,) = (plan for plan in mlp if plan.form == "modular_columns")
        assert down.rank is not None
        kept = evidence.kept(down.name, down.rank)
        yield _mlp_task(mlp, inputs, checkpoint, evidence.ridge(down.name), dtype, kept)
    matrices = [plan for plan in plans if plan.form == "interpolative" and plan.rank is not None]
    statistics = evidence.statistics_of(plan.name for plan in matrices)
    for plan in _largest_first(matrices):
        if plan.shared is not None:
            yield _shared_task(plan, evidence, checkpoint, options, dtype)
            continue
        part = _read(plan.name, checkpoint, statistics[plan.name], dtype)
        fisher = evidence.fisher(plan.name)
        yield AllocatedTask(plan, part.weight, part.bias, part.statistics, fisher, options.ridge, dtype)


def _shared_task(
    plan: MatrixPlan, evidence: Evidence, checkpoint: Checkpoint, options: ConvertOptions, dtype: torch.dtype
) -> SharedTask:
    """Read both matrices of a pair: either block computes their factors, so nothing is kept from one to the other."""
    assert plan.shared is not None
    names = plan.shared.matrices
    statistics = evidence.statistics_of(names)
    parts = [_read(name, checkpoint, statistics[name], dtype) for name in names]
    return SharedTask(plan, parts, [evidence.fisher(name) for name in names], options.ridge, dtype)


def block_tasks(
    plans: Sequence[MatrixPlan],
    statistics: Mapping[str, InputStatistics],
    checkpoint: Checkpoint,
    heads: Heads | None,
    options: ConvertOptions,
    dtype: torch.dtype,
    evidence: Evidence,
) -> Iterator[FactorTask]:
    """Read what one block's factorization needs, each part when its task is taken.

    Args:
        plans: Of the block's compressed matrices: each by itself, or in a modular or sparse form.
        statistics: Of each one's input, by its name.
        checkpoint: Weights and biases.
        heads: The layer's; None where no form is sparse.
        options: Method and numerics.
        dtype: Deployed dtype.
        evidence: Fisher information of rows; `fwsvd` only.

    Yields:
        Modules first, then matrices from the largest on: the last ones to start are short.

    Raises:
        InputError: The plan takes a part of a module, or different sizes from its parts, or as `matrix_task`.
    """
    mlp = [plan for plan in plans if plan.form in MODULAR.values()]
    if mlp:
        yield _mlp_task(mlp, statistics, checkpoint, options.ridge, dtype)
    sparse = {linear_of(plan.name): plan for plan in plans if plan.form in SPARSE.values()}
    for pair in (("q_proj", "k_proj"), ("v_proj", "o_proj")):
        if not sparse.keys() & set(pair):
            continue
        assert heads is not None
        sizes = {(sparse[x].rank or 0) / heads.count(x) if x in sparse else 0 for x in pair}
        kept = int(min(sizes))
        if sizes != {kept}:
            raise InputError(f"{plans[0].name}: {' and '.join(pair)} must keep as many dimensions of each head")
        names = {linear: sparse[linear].name for linear in pair}
        parts = {linear: _read(name, checkpoint, statistics[name], dtype) for linear, name in names.items()}
        yield HeadsTask(names, parts, heads, kept, options.ridge, dtype)
    for plan in _largest_first([plan for plan in plans if plan not in mlp and plan not in sparse.values()]):
        rows = evidence.fisher_rows(plan.name) if options.approximation == "fwsvd" else None
        yield matrix_task(plan, checkpoint, statistics[plan.name], options, dtype, rows)


def _mlp_task(
    plans: Sequence[MatrixPlan],
    statistics: Mapping[str, InputStatistics],
    checkpoint: Checkpoint,
    ridge: float,
    dtype: torch.dtype,
    kept: Indices | None = None,
) -> MLPTask:
    """Read the three linears of one MLP; without neurons to keep, ridge leverage decides."""
    names = {linear_of(plan.name): plan.name for plan in plans}
    ranks = {plan.rank for plan in plans if plan.rank is not None}
    if {linear_of(plan.name): plan.form for plan in plans} != MODULAR or len(ranks) != 1:
        raise InputError(f"{plans[0].name}: a smaller MLP needs {', '.join(MODULAR)}, all planned with one rank")
    parts = {linear: _read(name, checkpoint, statistics[name], dtype) for linear, name in names.items()}
    return MLPTask(names, parts, ranks.pop(), ridge, dtype, kept)


def _largest_first(plans: Sequence[MatrixPlan]) -> list[MatrixPlan]:
    return sorted(plans, key=lambda plan: -plan.parameters_before)


def _read(
    name: str, checkpoint: Checkpoint, statistics: InputStatistics, dtype: torch.dtype, *, corrected: bool = True
) -> Projection:
    """Read a linear, refusing numbers that are not finite; without its bias where that is not to be corrected."""
    parts = {part: checkpoint.read(part) for part in (name, bias_of(name)) if part in checkpoint.tensors}
    for part, tensor in parts.items():
        if not bool(torch.isfinite(tensor.to(dtype)).all()):
            raise InputError(not_finite(part, tensor, dtype))
    if not statistics.finite:
        raise InputError(f"{name}: its inputs overflow on the calibration text; the checkpoint is damaged before it")
    return Projection(parts[name], statistics, parts.get(bias_of(name)) if corrected else None)
