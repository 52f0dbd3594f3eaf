"""Which neighbouring layers' matrices have one R: after an allocation, and within its budget.

A pair is worth it where both matrices with one basis cost less than each with its own, at the price per parameter that
the allocation has found. The costs compared are K-FAC's, `½ tr(F ΔW H ΔWᵀ)`, exact for the factors that would be
stored, brought to the scale of what was measured token by token. The pairs then take part in a second allocation as
modules of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from curconvert.allocation.curves import Curve, price_of
from curconvert.allocation.evidence import Evidence
from curconvert.allocation.plans import allocated, budget_of, predicted_cost
from curconvert.checkpoint.types import Checkpoint
from curconvert.factorization.projection import Projection
from curconvert.factorization.shared import Metric, shared_basis, shared_pivots
from curconvert.options import ConvertOptions
from curconvert.planning import MatrixPlan, Plan, bias_of, layer_of, linear_of
from curconvert_runtime.forms import Shared

Read = Callable[[str], Metric]
Vector = NDArray[np.float64]


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
        return metric_of(name, checkpoint, evidence, options.ridge)

    size = separate.parameters_after
    price = price_of(curves, budget_of(separate, curves, size))
    single = {next(iter(curve.forms)): curve for curve in curves if len(curve.forms) == 1}
    pairs = []
    for chain in _chains([matrix for matrix in separate.matrices if matrix.name in single]):
        offered = [_offer(names, single, read, price, options) for names in itertools.pairwise(chain)]
        pairs += [offered[index] for index in matching([pair.gain for pair in offered])]
    while pairs:
        taken = {name for pair in pairs for name in pair.names}
        joined = [curve for curve in curves if not taken & curve.forms.keys()] + [pair.curve for pair in pairs]
        plan = allocated(separate, joined, size)
        if predicted_cost(joined, plan) >= predicted_cost(curves, separate):
            break
        divided = {pair.names: _divided(pair, plan, read) for pair in pairs}
        sound = [pair for pair in pairs if all(divided[pair.names].values())]
        if len(sound) == len(pairs):
            return _marked(plan, divided)
        pairs = sound
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


def _chains(matrices: Sequence[MatrixPlan]) -> list[list[str]]:
    """Return the runs of matrices of one kind in consecutive layers, any two of which have no more rows than columns.

    With more rows a common basis has little to save: it is as large as what it stands for.
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
    return [[matrix.name for matrix in chain] for chain in chains]


def _offer(
    names: tuple[str, str], single: Mapping[str, Curve], read: Read, price: float, options: ConvertOptions
) -> Pair:
    """Price a pair on one basis, at every size."""
    metrics = [read(name) for name in names]
    rows = shared_basis(*metrics).rows
    parts = [_as_measured(metric, rows, single[name]) for metric, name in zip(metrics, names, strict=True)]
    total = np.sum(parts, axis=0)
    sizes = range(options.rank_multiple, len(rows) - 1, options.rank_multiple)  # each keeps a row outside R
    # Its numbers are those of both matrices, one on top of the other, in one interpolative form.
    curve = Curve.of({names[0]: "interpolative"}, [(len(rows), rows.shape[1])], {size: total[size] for size in sizes})
    alone = sum(_least(single[name], price) for name in names)
    both = replace(curve, forms=dict.fromkeys(names, "interpolative"))
    return Pair(names, both, alone - _least(curve, price))


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


def _divided(pair: Pair, plan: Plan, read: Read) -> dict[str, int]:
    """Return how many rows of R are each matrix's, 0 where all are or none; nothing where the pair stays dense."""
    rank = next(matrix.rank for matrix in plan.matrices if matrix.name == pair.names[0])
    if rank is None:
        return {}
    metrics = [read(name) for name in pair.names]
    rows = shared_pivots(shared_basis(*metrics), rank)[0]
    return {
        name: len(own) if len(own) < len(metric.weight) else 0
        for name, own, metric in zip(pair.names, rows, metrics, strict=True)
    }


def _marked(plan: Plan, divided: Mapping[tuple[str, str], Mapping[str, int]]) -> Plan:
    """Return a plan in which pairs share."""
    shared = {name: Shared(names, rows) for names, own in divided.items() for name, rows in own.items()}
    return replace(plan, matrices=tuple(replace(matrix, shared=shared.get(matrix.name)) for matrix in plan.matrices))
