"""Turns a parameter budget and cost curves into a plan."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

from curconvert.allocation.curves import Curve, allocate
from curconvert.base.errors import InputError
from curconvert.base.names import bias_of, layer_of
from curconvert.base.plan import MatrixPlan, Plan
from curconvert.base.roles import Role
from curconvert.checkpoint.linears import decoder_linears, total_parameters
from curconvert.checkpoint.types import Checkpoint
from curconvert.families.roles import is_linear, role_of


def targets_of(checkpoint: Checkpoint, roles: Collection[Role]) -> dict[str, tuple[int, int]]:
    """Return the shapes of the matrices that may be compressed, by weight name.

    Args:
        checkpoint: The opened model.
        roles: Roles of the linears to compress.
    """
    shapes = decoder_linears(checkpoint)
    return {name: shape for name, shape in shapes.items() if role_of(name) in roles}


def allocated(plan: Plan, curves: Sequence[Curve], target: int) -> Plan:
    """Return a plan with the sizes that `allocate` chooses for a size of the whole model.

    Args:
        plan: Any plan of the same model.
        curves: Curves of every module that may be compressed.
        target: Parameters of the whole model.

    Raises:
        InputError: Even the smallest sizes on the curves exceed the target.
    """
    try:
        chosen = allocate(curves, budget_of(plan, curves, target))
    except ValueError as error:
        least = target - budget_of(plan, curves, target) + sum(float(curve.parameters.min()) for curve in curves)
        raise InputError(
            f"{target} parameters: the smallest model that these targets allow has {math.ceil(least)}; keep more, or "
            "compress more --targets"
        ) from error
    sizes = {
        name: (form, curve.sizes[index])
        for curve, index in zip(curves, chosen, strict=True)
        for name, form in curve.forms.items()
        if index > 0
    }
    matrices = [_sized(matrix, sizes.get(matrix.name)) for matrix in plan.matrices]
    layers = sorted({layer_of(name) for name in sizes})
    return replace(plan, matrices=tuple(matrices), layers=tuple(layers), layer_total=len(layers))


def budget_of(plan: Plan, curves: Sequence[Curve], target: int) -> float:
    """Return how many parameters the compressible modules may have when the whole model has `target`."""
    return target - (plan.parameters_before - sum(float(curve.parameters[0]) for curve in curves))


def predicted_cost(curves: Sequence[Curve], plan: Plan) -> float:
    """Return the sum of the costs of a plan's sizes, each on its own, nats per token."""
    ranks = {matrix.name: matrix.rank for matrix in plan.matrices if matrix.rank is not None}
    return sum(float(curve.costs[curve.sizes.index(ranks.get(next(iter(curve.forms)), 0))]) for curve in curves)


def _sized(matrix: MatrixPlan, chosen: tuple[str, int] | None) -> MatrixPlan:
    if chosen is None:
        reason = "costs more than it saves" if matrix.is_compressed else matrix.reason
        return MatrixPlan(matrix.name, matrix.shape, "dense", reason=reason)
    form, size = chosen
    return MatrixPlan(matrix.name, matrix.shape, form, size)


def assemble(
    checkpoint: Checkpoint,
    matrices: list[MatrixPlan],
    layers: tuple[int, ...] | None,
    layer_total: int,
) -> Plan:
    """Build a plan from its matrices, and add the parameters and biases outside them.

    Args:
        checkpoint: The opened model.
        matrices: One for each matrix of `decoder_linears`.
        layers: The layers to compress; None while they are not chosen.
        layer_total: Number of layers to compress.
    """
    other = total_parameters(checkpoint) - sum(m.parameters_before for m in matrices)
    biases = frozenset(
        bias for name in checkpoint.tensors if is_linear(name) and (bias := bias_of(name)) in checkpoint.tensors
    )
    return Plan(tuple(matrices), layers, layer_total, other, biases, checkpoint.notices)
