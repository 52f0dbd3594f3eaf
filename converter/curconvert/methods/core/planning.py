"""Makes plans from shapes alone, without reading weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from curconvert.base.errors import InputError
from curconvert.options.quantization import stored_bytes

if TYPE_CHECKING:
    from curconvert.base.plan import MatrixPlan, Plan
    from curconvert.checkpoint.types import Checkpoint
    from curconvert.options.settings import Settings

Shape = tuple[int, int]
NOT_SELECTED = "not selected"


def planned(
    checkpoint: Checkpoint,
    settings: Settings,
    plan_matrix: Callable[[str, Shape], MatrixPlan],
    asked: str,
    layers: tuple[int, ...] | None = None,
) -> Plan:
    """Return a plan in which each target matrix of the chosen layers is planned on its own.

    Args:
        checkpoint: The opened model.
        settings: Layers and targets.
        plan_matrix: Returns the plan of one matrix, from its weight name and shape.
        asked: The size, as on the command line.
        layers: The chosen layers, once known. Before, a choice by score is planned on the same number of inner layers.

    Raises:
        InputError: The plan would compress nothing, or the calibration sequences do not fit the model.
    """
    from curconvert.allocation.plans import assemble
    from curconvert.base.forms import MIN_SAVING
    from curconvert.base.names import layer_of
    from curconvert.base.plan import MatrixPlan
    from curconvert.calibration.text import check_context
    from curconvert.checkpoint.linears import decoder_linears
    from curconvert.families.roles import role_of
    from curconvert.selection.layers import layer_count, score_of, select_layers

    check_context(checkpoint, settings.calibration)
    num_layers = int(checkpoint.config["num_hidden_layers"])
    total = layer_count(settings.layers, num_layers)
    if total == 0:
        raise InputError(
            f"--layers {settings.layers}: the model has {num_layers} layers and the first and the last are never "
            "candidates, so nothing would be compressed; use --layers all or a list"
        )
    known = layers
    if layers is None and score_of(settings.layers) is None:
        known = select_layers(settings.layers, num_layers)
    shown = known if known is not None else tuple(range(num_layers - 1 - total, num_layers - 1))
    matrices = [
        plan_matrix(name, shape)
        if layer_of(name) in shown and role_of(name) in settings.roles
        else MatrixPlan(name, shape, "dense", reason=NOT_SELECTED)
        for name, shape in decoder_linears(checkpoint).items()
    ]
    if all(matrix.rank is None for matrix in matrices):
        raise InputError(
            f"{asked} with --targets {','.join(settings.targets)}: no selected matrix would get at least "
            f"{MIN_SAVING:.0%} smaller, so nothing would be compressed; keep less or choose larger targets"
        )
    return assemble(checkpoint, matrices, known, total)


def keeps_inputs(checkpoint: Checkpoint, settings: Settings) -> bool:
    """Return whether the first pass stores the inputs of all linears.

    It does if it chooses the layers and if there are fewer tokens than hidden units.
    """
    from curconvert.selection.layers import score_of

    tokens = settings.calibration.sequences * settings.calibration.tokens_per_sequence
    few = tokens < int(checkpoint.config["hidden_size"])
    return few and score_of(settings.layers) is not None and not settings.sequential


def bytes_per_number(checkpoint: Checkpoint, settings: Settings) -> float:
    """Return the bytes per number of the artifact's matrices."""
    from curconvert.base.dtypes import torch_dtype
    from curconvert.checkpoint.dtypes import deployed_dtype

    dtype = torch_dtype(deployed_dtype(checkpoint, settings.dtype, settings.arithmetic))
    return stored_bytes(dtype.itemsize, settings.quantization)
