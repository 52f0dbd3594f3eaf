"""Which neighboring layers' matrices have one R: after an allocation, and within its budget.

A pair is worth it where both matrices with one basis cost less than each with its own, at the price per parameter that
the allocation has found. The costs compared are K-FAC's, `½ tr(F ΔW H ΔWᵀ)`, exact for the factors that would be
stored, brought to the scale of what was measured token by token. The pairs then take part in a second allocation as
modules of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from curconvert.allocation.curves import Curve, price_of
from curconvert.allocation.plans import allocated, budget_of, predicted_cost
from curconvert.base.names import bias_of, layer_of
from curconvert.base.plan import MatrixPlan, Plan
from curconvert.base.types import Vector
from curconvert.calibration.evidence import Evidence
from curconvert.checkpoint.types import Checkpoint
from curconvert.execution.task import Executor
from curconvert.factorization.projection import Projection
from curconvert.factorization.shared import Metric, shared_basis, shared_pivots
from curconvert.factorization.tasks import lapack
from curconvert.families.roles import role_of
from curconvert_runtime.format.forms.form import Shared


@dataclass(frozen=True)
class Pair:
    """Two matrices that may have one R.

    Attributes:
        names: Weight names, the first layer's first.
        curve: Of both together on one basis.
        gain: What sharing saves at the price of a parameter, nats per token; negative where it costs.
    """

    names: tuple[str, str]
    curve: Curve
    gain: float


def with_sharing(
    separate: Plan,
    curves: Sequence[Curve],
    checkpoint: Checkpoint,
    evidence: Evidence,
    executor: Executor,
    *,
    ridge: float,
    multiple: int,
) -> Plan:
    """Let neighboring layers share where it pays, and allocate again.

    Args:
        separate: An allocation of these curves; its size is kept.
        curves: Of every module that may be compressed.
        checkpoint: The original.
        evidence: Statistics of the original.
        executor: Prices pairs.
        ridge: λ of `H + λ diag(H)`.
        multiple: Ranks are multiples of it.

    Returns:
        The plan as it is where nothing is gained.
    """

    def read(names: tuple[str, str]) -> tuple[Metric, Metric]:
        first, second = (metric_of(name, checkpoint, evidence, ridge) for name in names)
        return first, second

    size = separate.parameters_after
    price = price_of(curves, budget_of(separate, curves, size))
    single = {next(iter(curve.forms)): curve for curve in curves if len(curve.forms) == 1}
    chains = [[*itertools.pairwise(chain)] for chain in _chains([m for m in separate.matrices if m.name in single])]
    offered = executor.map(
        OfferTask(names, read(names), (single[names[0]], single[names[1]]), price, multiple)
        for chain in chains
        for names in chain
    )
    found = iter(offered)
    pairs = [pair for chain in chains for pair in matching([next(found) for _ in chain])]
    while pairs:
        taken = {name for pair in pairs for name in pair.names}
        joined = [curve for curve in curves if not taken & curve.forms.keys()] + [pair.curve for pair in pairs]
        plan = allocated(separate, joined, size)
        if predicted_cost(joined, plan) >= predicted_cost(curves, separate):
            break
        ranks = {matrix.name: matrix.rank for matrix in plan.matrices}
        smaller = [(pair.names, rank) for pair in pairs if (rank := ranks[pair.names[0]]) is not None]
        rows = executor.map(DivisionTask(names, read(names), rank) for names, rank in smaller)
        divided = {names: own for (names, _), own in zip(smaller, rows, strict=True)}
        unsound = {names for names, own in divided.items() if not all(own.values())}
        if not unsound:
            return _marked(plan, divided)
        pairs = [pair for pair in pairs if pair.names not in unsound]
    return separate


def metric_of(name: str, checkpoint: Checkpoint, evidence: Evidence, ridge: float) -> Metric:
    """Read a linear and what its errors cost.

    Args:
        name: Its weight.
        checkpoint: The original.
        evidence: Statistics of the original.
        ridge: λ of `H + λ diag(H)`.
    """
    bias = checkpoint.read(bias_of(name)) if bias_of(name) in checkpoint.tensors else None
    projection = Projection(checkpoint.read(name), evidence.statistics(name), bias)
    return Metric.of(projection, evidence.fisher(name), ridge)


def matching(pairs: Sequence[Pair]) -> list[Pair]:
    """Choose pairs of neighbors in a chain, no matrix in two of them, for the largest sum of gains.

    Args:
        pairs: Of the chain's elements i and i + 1, for every i.

    Returns:
        The chosen ones, in order.
    """
    best: list[tuple[float, list[Pair]]] = [(0.0, []), (0.0, [])]  # of the first 0, 1, … elements
    for pair in pairs:
        without, before = best[-1], best[-2]
        best.append(max(without, (before[0] + pair.gain, [*before[1], pair]), key=lambda found: found[0]))
    return best[-1][1]


def _chains(matrices: Sequence[MatrixPlan]) -> list[list[str]]:
    """Return the runs of matrices of one kind in consecutive layers, any two of which have no more rows than columns.

    With more rows a common basis has little to save: it is as large as what it stands for.
    """
    chains: list[list[MatrixPlan]] = []
    for matrix in sorted(matrices, key=lambda matrix: (role_of(matrix.name), layer_of(matrix.name))):
        last = chains[-1][-1] if chains else None
        if (
            last is not None
            and role_of(last.name) == role_of(matrix.name)
            and layer_of(last.name) + 1 == layer_of(matrix.name)
            and last.shape[1] == matrix.shape[1] >= last.shape[0] + matrix.shape[0]
        ):
            chains[-1].append(matrix)
        else:
            chains.append([matrix])
    return [[matrix.name for matrix in chain] for chain in chains]


@dataclass(frozen=True)
class OfferTask:
    """Prices a pair on one basis, at every size.

    Attributes:
        names: Weight names.
        metrics: What errors of each cost.
        curves: Of each by itself.
        price: Of a parameter, nats per token.
        multiple: Of ranks.
    """

    names: tuple[str, str]
    metrics: tuple[Metric, Metric]
    curves: tuple[Curve, Curve]
    price: float
    multiple: int

    def run(self) -> Pair:
        """Return the pair.

        Raises:
            BackendError: A LAPACK routine did not converge.
        """
        with lapack(self.names[0]):
            rows = shared_basis(*self.metrics).rows
            parts = [_as_measured(metric, rows, curve) for metric, curve in zip(self.metrics, self.curves, strict=True)]
        total = np.sum(parts, axis=0)
        sizes = range(self.multiple, len(rows) - 1, self.multiple)  # each matrix keeps a row outside R
        costs = {size: float(total[size]) for size in sizes}
        # Its numbers are those of both matrices, one on top of the other, in one interpolative form.
        curve = Curve.of({self.names[0]: "interpolative"}, [(len(rows), rows.shape[1])], costs)
        alone = sum(_least(curve, self.price) for curve in self.curves)
        both = replace(curve, forms=dict.fromkeys(self.names, "interpolative"))
        return Pair(self.names, both, alone - _least(curve, self.price))


@dataclass(frozen=True)
class DivisionTask:
    """Divides the rows of a common R: with the numbers with which the factors will be computed.

    Attributes:
        names: Weight names.
        metrics: What errors of each cost.
        rank: Of R.
    """

    names: tuple[str, str]
    metrics: tuple[Metric, Metric]
    rank: int

    def run(self) -> dict[str, int]:
        """Return how many rows of R are each matrix's; 0 where all of its rows are, or none; raises as `OfferTask`."""
        with lapack(self.names[0]):
            rows = shared_pivots(shared_basis(*self.metrics), self.rank)[0]
        return {
            name: len(own) if len(own) < len(metric.weight) else 0
            for name, own, metric in zip(self.names, rows, self.metrics, strict=True)
        }


def _least(curve: Curve, price: float) -> float:
    return float((curve.costs + price * curve.parameters).min())


def _as_measured(metric: Metric, rows: Vector, curve: Curve) -> Vector:
    """Return what a matrix costs within a basis, for each of its leading parts, nats per token.

    A change that K-FAC holds for as dear as that of some rank of the matrix by itself costs what that rank was
    measured to cost.
    """
    alone, costs = metric.best_costs()[list(curve.sizes[1:])], metric.costs_within(rows)
    known = alone > 0
    if not known.any():
        return costs
    ratio = curve.costs[1:][known] / alone[known]
    return np.asarray(costs * np.interp(np.log(np.maximum(costs, alone[known][0])), np.log(alone[known]), ratio))


def _marked(plan: Plan, divided: Mapping[tuple[str, str], Mapping[str, int]]) -> Plan:
    """Return a plan in which pairs share."""
    shared = {name: Shared(names, rows) for names, own in divided.items() for name, rows in own.items()}
    return replace(plan, matrices=tuple(replace(matrix, shared=shared.get(matrix.name)) for matrix in plan.matrices))
