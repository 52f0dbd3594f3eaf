"""From a budget to a plan: before anything is measured, and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from curconvert.allocation.curves import Curve, allocate
from curconvert.base.errors import InputError
from curconvert.base.forms import rank_for_density
from curconvert.base.names import layer_of, linear_of
from curconvert.base.plan import MatrixPlan, Plan
from curconvert.calibration.text import check_context
from curconvert.checkpoint.linears import decoder_linears, total_parameters, uniform_density
from curconvert.checkpoint.types import Checkpoint
from curconvert.options.convert import ConvertOptions
from curconvert_runtime.format.modules import MODULAR

SEARCHED_KEEP = 0.8  # what a dry run shows when the size is to be found by --max-kl
_HEADER_BYTES = 160  # of a safetensors header, per tensor


def targets_of(checkpoint: Checkpoint, options: ConvertOptions) -> dict[str, tuple[int, int]]:
    """Return the shapes of the matrices that may be compressed, by weight name."""
    shapes = decoder_linears(checkpoint)
    return {name: shape for name, shape in shapes.items() if linear_of(name) in options.targets}


def target_parameters(checkpoint: Checkpoint, options: ConvertOptions, itemsize: float) -> int:
    """Return the parameters that the whole model may keep.

    Args:
        checkpoint: The opened model.
        options: One of `keep`, `target_parameters`, `target_bytes` and `max_kl` is set.
        itemsize: Bytes of a stored number.

    Raises:
        InputError: The target is no smaller than the model.
    """
    before = total_parameters(checkpoint)
    if options.target_parameters is not None:
        target, asked = options.target_parameters, f"--target-params {options.target_parameters}"
    elif options.target_bytes is not None:
        # The longest index vectors that a form can have, and a line of the header for each tensor.
        shapes = targets_of(checkpoint, options)
        indices = sum(m + min(m, n) for m, n in shapes.values())
        rest = options.target_bytes - 4 * indices - _HEADER_BYTES * (len(checkpoint.tensors) + 3 * len(shapes))
        target, asked = int(rest / itemsize), f"--target-bytes {options.target_bytes}"
    else:
        share = SEARCHED_KEEP if options.keep is None else options.keep
        target, asked = int(share * before), f"--keep {share:g}"
    if not 0 < target < before:
        raise InputError(f"{asked}: the model has {before} parameters, {int(before * itemsize)} bytes; ask for fewer")
    return target


def uniform_plan(checkpoint: Checkpoint, options: ConvertOptions, itemsize: float) -> Plan:
    """Plan every target at one density: what can be known before anything is measured.

    Args:
        checkpoint: The opened model.
        options: Validated options.
        itemsize: Bytes of a stored number.

    Raises:
        InputError: The target cannot be had.
    """
    check_context(checkpoint, options.calibration)
    shapes = targets_of(checkpoint, options)
    target = target_parameters(checkpoint, options, itemsize)
    density = uniform_density(checkpoint, shapes.values(), target)
    matrices = []
    for name, shape in decoder_linears(checkpoint).items():
        if name not in shapes:
            matrices.append(MatrixPlan(name, shape, "dense", reason="not selected"))
            continue
        own = MODULAR if options.form == "auto" else {}
        form = own.get(linear_of(name), "interpolative")
        rank = rank_for_density(form, shape, density) // options.rank_multiple * options.rank_multiple
        if density <= 0 or rank < 1:
            raise InputError(
                f"{target} parameters: {name} would keep {density:.1%} of its numbers, which leaves no rank that is a "
                f"multiple of {options.rank_multiple}; keep more, or allow more --targets"
            )
        matrices.append(MatrixPlan(name, shape, form, rank))
    layers = tuple(sorted({layer_of(name) for name in shapes}))
    return assemble(checkpoint, matrices, layers, len(layers))


def allocated(plan: Plan, curves: Sequence[Curve], target: int) -> Plan:
    """Spend a budget where it is worth most.

    Args:
        plan: Any plan of the same model.
        curves: Of every module that may be compressed.
        target: Parameters of the whole model.

    Raises:
        InputError: The smallest sizes that are considered do not fit.
    """
    try:
        chosen = allocate(curves, budget_of(plan, curves, target))
    except ValueError as error:
        least = target - budget_of(plan, curves, target) + sum(float(curve.parameters.min()) for curve in curves)
        raise InputError(
            f"{target} parameters: the smallest sizes that are considered store {math.ceil(least)}; keep more, or "
            "let more linears be compressed"
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
    """Return what a size of the whole model leaves for the modules that may be compressed."""
    return target - (plan.parameters_before - sum(float(curve.parameters[0]) for curve in curves))


def predicted_cost(curves: Sequence[Curve], plan: Plan) -> float:
    """Sum what the chosen sizes cost by themselves, nats per token."""
    ranks = {matrix.name: matrix.rank for matrix in plan.matrices if matrix.rank is not None}
    return sum(float(curve.costs[curve.sizes.index(ranks.get(next(iter(curve.forms)), 0))]) for curve in curves)


def _sized(matrix: MatrixPlan, chosen: tuple[str, int] | None) -> MatrixPlan:
    if chosen is None:
        reason = "worth its size" if matrix.is_compressed else matrix.reason
        return MatrixPlan(matrix.name, matrix.shape, "dense", reason=reason)
    form, size = chosen
    return MatrixPlan(matrix.name, matrix.shape, form, size)


def assemble(
    checkpoint: Checkpoint,
    matrices: list[MatrixPlan],
    layers: tuple[int, ...] | None,
    layer_total: int,
) -> Plan:
    """Complete a plan with what its matrices leave out.

    Args:
        checkpoint: The opened model.
        matrices: Of `decoder_linears`.
        layers: The chosen layers, once known.
        layer_total: How many they are.
    """
    other = total_parameters(checkpoint) - sum(m.parameters_before for m in matrices)
    biases = frozenset(name for name in checkpoint.tensors if name.endswith("_proj.bias"))
    return Plan(tuple(matrices), layers, layer_total, other, biases)
