"""Chooses the pairs of neighboring layers whose matrices share one R, after an allocation and in its budget.

A pair shares if both matrices cost less with one basis than with two, at the allocation's price per parameter. The
costs are K-FAC's, `½ tr(F ΔW H ΔWᵀ)`, within the common basis, and scaled to the costs measured token by token. A
second allocation then treats each pair as one module.
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
    """Describes two matrices that may share one R.

    Attributes:
        names: Weight names, the first layer's first.
        curve: Cost curve of both together on one basis.
        gain: Saving at the price per parameter, nats per token; negative if sharing costs more.
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
    """Return a plan of the same size in which neighboring layers share one R where this lowers the predicted cost.

    Args:
        separate: An allocation of these curves.
        curves: Curves of every module that may be compressed.
        checkpoint: The original.
        evidence: Statistics of the original.
        executor: Runs the tasks that measure pairs.
        ridge: λ of `H + λ diag(H)`.
        multiple: Ranks are multiples of it.

    Returns:
        The new plan, or `separate` if sharing gains nothing.
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
    """Return a linear's weight with the Gram and Fisher matrices that give the cost of its errors.

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
    """Choose the disjoint pairs of neighbors in a chain with the largest sum of gains.

    Args:
        pairs: The pair of the chain's elements i and i + 1, for every i.

    Returns:
        The chosen pairs, in order.
    """
    best: list[tuple[float, list[Pair]]] = [(0.0, []), (0.0, [])]  # the best choice among the first 0, 1, … elements
    for pair in pairs:
        without, before = best[-1], best[-2]
        best.append(max(without, (before[0] + pair.gain, [*before[1], pair]), key=lambda found: found[0]))
    return best[-1][1]


def _chains(matrices: Sequence[MatrixPlan]) -> list[list[str]]:
    """Return the runs of matrices with one role in consecutive layers; two together have no more rows than columns.

    With more rows, a common basis saves little: it is as large as the matrices.
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
    """Measures the cost of a pair on one basis, at every size.

    Attributes:
        names: Weight names.
        metrics: Each matrix with the cost of its errors.
        curves: Cost curve of each matrix on its own.
        price: Price of a parameter, nats per token.
        multiple: Ranks are multiples of it.
    """

    names: tuple[str, str]
    metrics: tuple[Metric, Metric]
    curves: tuple[Curve, Curve]
    price: float
    multiple: int

    def run(self) -> Pair:
        """Return the pair with its cost curve and gain.

        Raises:
            BackendError: A LAPACK routine did not converge.
        """
        with lapack(self.names[0]):
            rows = shared_basis(*self.metrics).rows
            parts = [_as_measured(metric, rows, curve) for metric, curve in zip(self.metrics, self.curves, strict=True)]
        total = np.sum(parts, axis=0)
        sizes = range(self.multiple, len(rows) - 1, self.multiple)  # each matrix keeps a row outside R
        costs = {size: float(total[size]) for size in sizes}
        # A pair stores as many numbers as one interpolative form of both matrices stacked.
        curve = Curve.of({self.names[0]: "interpolative"}, [(len(rows), rows.shape[1])], costs)
        alone = sum(_least(curve, self.price) for curve in self.curves)
        both = replace(curve, forms=dict.fromkeys(self.names, "interpolative"))
        return Pair(self.names, both, alone - _least(curve, self.price))


@dataclass(frozen=True)
class DivisionTask:
    """Finds which rows of a common R belong to which matrix, with the computation that later makes the factors.

    Attributes:
        names: Weight names.
        metrics: Each matrix with the cost of its errors.
        rank: Rank of R.
    """

    names: tuple[str, str]
    metrics: tuple[Metric, Metric]
    rank: int

    def run(self) -> dict[str, int]:
        """Return how many rows of R each matrix owns, by name; raises as `OfferTask`.

        The number is 0 if R contains none of a matrix's rows, or all of them: such a pair cannot share.
        """
        with lapack(self.names[0]):
            rows = shared_pivots(shared_basis(*self.metrics), self.rank)[0]
        return {
            name: len(own) if len(own) < len(metric.weight) else 0
            for name, own, metric in zip(self.names, rows, self.metrics, strict=True)
        }


def _least(curve: Curve, price: float) -> float:
    return float((curve.costs + price * curve.parameters).min())


def _as_measured(metric: Metric, rows: Vector, curve: Curve) -> Vector:
    """Return the cost of a matrix in each leading part of a basis, nats per token, on the scale of its measured curve.

    K-FAC's costs are multiplied by the ratio of measured cost to K-FAC's cost, which the matrix's own ranks give.
    """
    alone, costs = metric.best_costs()[list(curve.sizes[1:])], metric.costs_within(rows)
    known = alone > 0
    if not known.any():
        return costs
    ratio = curve.costs[1:][known] / alone[known]
    return np.asarray(costs * np.interp(np.log(np.maximum(costs, alone[known][0])), np.log(alone[known]), ratio))


def _marked(plan: Plan, divided: Mapping[tuple[str, str], Mapping[str, int]]) -> Plan:
    """Return the plan with its pairs marked as shared."""
    shared = {name: Shared(names, rows) for names, own in divided.items() for name, rows in own.items()}
    return replace(plan, matrices=tuple(replace(matrix, shared=shared.get(matrix.name)) for matrix in plan.matrices))
