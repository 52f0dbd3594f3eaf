"""Which neighbouring layers' matrices have one R: after an allocation, and within its budget.

A pair is worth it where both matrices together cost less with one basis than with two in as many stored numbers. The
costs compared are K-FAC's, `½ tr(F ΔW H ΔWᵀ)`, exact for the factors that will be stored; a matrix's are scaled so that
the size that was allocated to it costs what was measured token by token. The pairs then take part in a second
allocation as modules of their own.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from curconvert.allocation.curves import Curve
from curconvert.allocation.evidence import Evidence
from curconvert.allocation.plans import allocated, predicted_cost
from curconvert.checkpoint.types import Checkpoint
from curconvert.factorization.projection import Projection
from curconvert.factorization.shared import Metric, shared_basis, shared_pivots
from curconvert.options import ConvertOptions
from curconvert.planning import MatrixPlan, Plan, bias_of, layer_of, linear_of
from curconvert_runtime.forms import Shared, parameters

Read = Callable[[str], Metric]


@dataclass(frozen=True)
class Pair:
    """Two matrices that may have one R.

    Attributes:
        matrices: Their weight names, the first layer's first.
        curve: Of both together on one basis.
        gain: What sharing saves at the size that is allocated to them, nats per token; negative where it costs.
    """

    matrices: tuple[str, str]
    curve: Curve
    gain: float


def with_sharing(
    separate: Plan, curves: Sequence[Curve], checkpoint: Checkpoint, evidence: Evidence, options: ConvertOptions
) -> Plan:
    """Let neighbouring layers share where it pays, and allocate again.

    Args:
        separate: An allocation of these curves; its size is kept.
        curves: Of every module that may be compressed.
        checkpoint: The original.
        evidence: Statistics of the original.
        options: Ridge and multiples.

    Returns:
        The plan as it is where nothing is gained.
    """

    def read(name: str) -> Metric:
        bias = checkpoint.read(bias_of(name)) if bias_of(name) in checkpoint.tensors else None
        projection = Projection(checkpoint.read(name), evidence.statistics(name), bias)
        return Metric.of(projection, evidence.fisher(name), options.ridge)

    costs = _allocated_costs(separate, curves)
    pairs = []
    for chain in _chains([matrix for matrix in separate.matrices if matrix.name in costs]):
        offered = [_offer(pair, costs, read, options.rank_multiple) for pair in itertools.pairwise(chain)]
        pairs += [offered[index] for index in matching([pair.gain for pair in offered])]
    while pairs:
        joined = [
            *(c for c in curves if not any(c.forms.keys() & set(p.matrices) for p in pairs)),
            *(p.curve for p in pairs),
        ]
        plan = allocated(separate, joined, separate.parameters_after)
        if predicted_cost(joined, plan) >= predicted_cost(curves, separate):
            return separate
        rows = {pair.matrices: _divided(pair, plan, read) for pair in pairs}
        sound = [pair for pair in pairs if rows[pair.matrices] is not None]
        if len(sound) == len(pairs):
            return _marked(plan, {pair: found for pair, found in rows.items() if found})
        pairs = sound
    return separate


def matching(gains: Sequence[float]) -> list[int]:
    """Choose pairs of neighbours in a chain, no element in two of them, for the largest sum of gains.

    Args:
        gains: Of pairing the elements i and i + 1.

    Returns:
        The chosen pairs' i, ascending.
    """
    best: list[tuple[float, list[int]]] = [(0.0, []), (0.0, [])]  # of the first 0, 1, … elements
    for index, gain in enumerate(gains):
        without, before = best[-1], best[-2]
        best.append(max(without, (before[0] + gain, [*before[1], index]), key=lambda found: found[0]))
    return best[-1][1]


def _allocated_costs(plan: Plan, curves: Sequence[Curve]) -> dict[str, float]:
    """Return what each interpolative matrix costs at its rank, nats per token."""
    by_name = {name: curve for curve in curves for name in curve.forms}
    return {
        matrix.name: float(by_name[matrix.name].costs[by_name[matrix.name].sizes.index(matrix.rank)])
        for matrix in plan.matrices
        if matrix.form == "interpolative" and matrix.rank is not None
    }


def _chains(matrices: Sequence[MatrixPlan]) -> list[list[MatrixPlan]]:
    """Return the runs of matrices of one kind in consecutive layers, any two of which have no more rows than columns.

    With as many rows as columns a common basis has nothing to save: it is as large as what it stands for.
    """
    chains: list[list[MatrixPlan]] = []
    for matrix in sorted(matrices, key=lambda matrix: (linear_of(matrix.name), layer_of(matrix.name))):
        last = chains[-1][-1] if chains else None
        if (
            last is not None
            and linear_of(last.name) == linear_of(matrix.name)
            and layer_of(last.name) + 1 == layer_of(matrix.name)
            and last.shape[1] == matrix.shape[1] >= last.shape[0] + matrix.shape[0]
        ):
            chains[-1].append(matrix)
        else:
            chains.append([matrix])
    return chains


def _offer(pair: tuple[MatrixPlan, MatrixPlan], costs: Mapping[str, float], read: Read, multiple: int) -> Pair:
    """Price a pair on one basis, at every size."""
    metrics = [read(matrix.name) for matrix in pair]
    basis, total = shared_basis(metrics).rows, np.zeros(1)
    for metric, matrix in zip(metrics, pair, strict=True):
        alone = float(metric.best_costs()[matrix.rank])
        total = total + metric.costs_within(basis) * (costs[matrix.name] / alone if alone > 0 else 1.0)
    stacked = (len(basis), basis.shape[1])
    budget = sum(matrix.parameters_after for matrix in pair)
    ranks = range(1, len(basis) - 1)  # each matrix keeps a row of its own outside R
    rank = bisect.bisect_right(ranks, budget, key=lambda rank: parameters("interpolative", stacked, rank))
    names = (pair[0].name, pair[1].name)
    sizes = {size: float(total[size]) for size in range(multiple, len(basis) - 1, multiple)}
    curve = Curve.of({names[0]: "interpolative"}, [stacked], sizes)
    gain = sum(costs[name] for name in names) - float(total[rank])
    return Pair(names, replace(curve, forms=dict.fromkeys(names, "interpolative")), gain)


def _divided(pair: Pair, plan: Plan, read: Read) -> tuple[int, int] | None:
    """Return how many rows of R are each matrix's; None where one has all of its rows there, or none.

    (0, 0) stands for a pair that stays dense.
    """
    rank = next(matrix.rank for matrix in plan.matrices if matrix.name == pair.matrices[0])
    if rank is None:
        return 0, 0
    metrics = [read(name) for name in pair.matrices]
    first, second = (len(rows) for rows in shared_pivots(shared_basis(metrics), rank)[0])
    sound = 0 < first < len(metrics[0].weight) and 0 < second < len(metrics[1].weight)
    return (first, second) if sound else None


def _marked(plan: Plan, pairs: Mapping[tuple[str, str], tuple[int, int]]) -> Plan:
    """Return a plan in which pairs share."""
    shared = {
        name: Shared(names, rows)
        for names, counts in pairs.items()
        for name, rows in zip(names, counts, strict=True)
        if rows
    }
    return replace(plan, matrices=tuple(replace(m, shared=shared.get(m.name)) for m in plan.matrices))
