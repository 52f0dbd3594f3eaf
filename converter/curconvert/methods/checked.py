"""From planned matrices to tasks: weights and biases are read here, and what could not be stored is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from curconvert.base.errors import InputError
from curconvert.base.names import linear_of
from curconvert.base.plan import MatrixPlan
from curconvert.base.types import Indices
from curconvert.calibration.evidence import Evidence
from curconvert.checkpoint.types import Checkpoint
from curconvert.execution.task import Task
from curconvert.factorization.projection import Projection
from curconvert.factorization.projections import read_projections
from curconvert.factorization.tasks import AllocatedTask, HeadsTask, LearnedTask, MatrixTask, MLPTask, SharedTask
from curconvert.factorization.types import Factorization
from curconvert.families.heads import Heads
from curconvert.linalg.statistics import InputStatistics
from curconvert.options.convert import ConvertOptions
from curconvert_runtime.format.modules import MODULAR, SPARSE

FactorTask = Task[dict[str, Factorization]]


def allocated_tasks(
    plans: Sequence[MatrixPlan],
    evidence: Evidence,
    checkpoint: Checkpoint,
    options: ConvertOptions,
    dtype: torch.dtype,
) -> Iterator[FactorTask]:
    """Read one block's matrices as an allocation planned them.

    Args:
        plans: Of the block's compressed matrices.
        evidence: Statistics of the original.
        checkpoint: Weights and biases.
        options: Its ridge.
        dtype: Deployed dtype.

    Yields:
        The MLP's task first: it takes longest.

    Raises:
        InputError: As `block_tasks`.
    """
    names = [plan.name for plan in plans]
    parts = read_projections(names, evidence.statistics_of(names), checkpoint, dtype)
    mlp = [plan for plan in plans if plan.form in MODULAR.values()]
    if mlp:
        (down,) = (plan for plan in mlp if plan.form == "modular_columns")
        assert down.rank is not None
        kept = evidence.kept(down.name, down.rank)
        yield _mlp_task(mlp, parts, evidence.ridge(down.name), dtype, kept)
    for plan in _largest_first([plan for plan in plans if plan.form == "interpolative"]):
        if plan.shared is not None:
            yield _shared_task(plan, evidence, checkpoint, options, dtype)
            continue
        part, fisher = parts[plan.name], evidence.fisher(plan.name)
        yield AllocatedTask(plan, part.weight, part.bias, part.statistics, fisher, options.ridge, dtype)


def learned_tasks(
    plans: Sequence[MatrixPlan], evidence: Evidence, checkpoint: Checkpoint, dtype: torch.dtype
) -> Iterator[FactorTask]:
    """Read one block's matrices whose factors were learned; see `allocated_tasks`."""
    names = [plan.name for plan in plans]
    parts = read_projections(names, evidence.statistics_of(names), checkpoint, dtype)
    for plan in _largest_first(plans):
        part = parts[plan.name]
        factors = evidence.components(plan.name)
        yield LearnedTask(plan, part.weight, part.bias, part.statistics, factors, dtype)


def _shared_task(
    plan: MatrixPlan, evidence: Evidence, checkpoint: Checkpoint, options: ConvertOptions, dtype: torch.dtype
) -> SharedTask:
    """Read both matrices of a pair: either block computes their factors, so nothing is kept from one to the other."""
    assert plan.shared is not None
    names = plan.shared.matrices
    parts = read_projections(names, evidence.statistics_of(names), checkpoint, dtype)
    return SharedTask(
        plan, [parts[name] for name in names], [evidence.fisher(name) for name in names], options.ridge, dtype
    )


def block_tasks(
    plans: Sequence[MatrixPlan],
    statistics: Mapping[str, InputStatistics],
    checkpoint: Checkpoint,
    heads: Heads | None,
    options: ConvertOptions,
    dtype: torch.dtype,
    evidence: Evidence,
) -> Iterator[FactorTask]:
    """Read what one block's factorization needs.

    A bias makes up for the mean of what is lost, where the method approximates in the full metric.

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
        InputError: The plan takes a part of a module, or different sizes from its parts; or a weight, bias or
            statistics would make every later number meaningless: not finite, or not in the deployed dtype.
    """
    parts = read_projections(
        [plan.name for plan in plans], statistics, checkpoint, dtype, corrected=options.full_metric
    )
    mlp = [plan for plan in plans if plan.form in MODULAR.values()]
    if mlp:
        yield _mlp_task(mlp, parts, options.ridge, dtype)
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
        both = {linear: parts[name] for linear, name in names.items()}
        yield HeadsTask(names, both, heads, kept, options.ridge, dtype)
    for plan in _largest_first([plan for plan in plans if plan.entry.kept is None]):
        part = parts[plan.name]
        rows = evidence.fisher_rows(plan.name) if options.approximation == "fwsvd" else None
        yield MatrixTask(plan, part.weight, part.bias, part.statistics, options, dtype, rows)


def _mlp_task(
    plans: Sequence[MatrixPlan],
    parts: Mapping[str, Projection],
    ridge: float,
    dtype: torch.dtype,
    kept: Indices | None = None,
) -> MLPTask:
    """Bring the three linears of one MLP together; without neurons to keep, ridge leverage decides."""
    names = {linear_of(plan.name): plan.name for plan in plans}
    ranks = {plan.rank for plan in plans if plan.rank is not None}
    if {linear_of(plan.name): plan.form for plan in plans} != MODULAR or len(ranks) != 1:
        raise InputError(f"{plans[0].name}: a smaller MLP needs {', '.join(MODULAR)}, all planned with one rank")
    three = {linear: parts[name] for linear, name in names.items()}
    return MLPTask(names, three, ranks.pop(), ridge, dtype, kept)


def _largest_first(plans: Sequence[MatrixPlan]) -> list[MatrixPlan]:
    return sorted(plans, key=lambda plan: -plan.parameters_before)
