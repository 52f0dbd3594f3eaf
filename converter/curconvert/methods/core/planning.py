"""Plans from shapes alone: no weight is read."""

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
    """Plan each target matrix of the chosen layers by itself.

    Args:
        checkpoint: The opened model.
        settings: Layers and targets.
        plan_matrix: Decides form and rank of one matrix, from its weight name and shape.
        asked: The size, as the command line spells it.
        layers: The chosen layers, once known; otherwise a choice by score is shown on as many inner layers.

    Raises:
        InputError: Nothing would be compressed at all, or the calibration sequences do not fit the model.
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
    """Tell whether the first pass keeps every linear's inputs: layers are chosen by it, and the tokens are few."""
    from curconvert.selection.layers import score_of

    tokens = settings.calibration.sequences * settings.calibration.tokens_per_sequence
    few = tokens < int(checkpoint.config["hidden_size"])
    return few and score_of(settings.layers) is not None and not settings.sequential


def bytes_per_number(checkpoint: Checkpoint, settings: Settings) -> float:
    """Return the bytes of a number of the artifact's matrices."""
    from curconvert.base.dtypes import torch_dtype
    from curconvert.checkpoint.dtypes import deployed_dtype

    dtype = torch_dtype(deployed_dtype(checkpoint, settings.dtype, settings.arithmetic))
    return stored_bytes(dtype.itemsize, settings.quantization)
