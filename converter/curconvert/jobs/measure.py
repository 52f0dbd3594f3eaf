"""Runs the passes over the original model: once per conversion, or once for all sizes of a sweep."""

from __future__ import annotations

from collections.abc import Sequence

from curconvert.allocation.plans import targets_of
from curconvert.allocation.sensitivity import Grid, Sensitivity
from curconvert.base.names import layer_of
from curconvert.base.roles import Role
from curconvert.calibration.backward import BackwardPass
from curconvert.calibration.gathering import Gathering
from curconvert.calibration.original import Watched, run_original
from curconvert.checkpoint.linears import decoder_linears
from curconvert.checkpoint.types import Checkpoint
from curconvert.families.roles import role_of
from curconvert.methods.core.context import Context, Measured
from curconvert.methods.core.options import ConvertOptions
from curconvert.methods.core.planning import keeps_inputs
from curconvert.quantization.tensors import UNQUANTIZED, quantized_tables
from curconvert.selection.layers import score_of, select_layers


def measure(context: Context, wanted: Sequence[ConvertOptions]) -> Measured:
    """Run the original model once forward, and once backward if gradients are needed; return what was measured.

    Args:
        context: The model and its text; its evidence receives the statistics.
        wanted: Options of every conversion that will use the result. Their sizes do not matter.
    """
    checkpoint, settings = context.checkpoint, context.settings
    scores = {score for score in (score_of(options.layers) for options in wanted) if score}
    backward = _backward(context, wanted)
    quantization = settings.quantization
    feedback = quantization is not None and (quantization.uses_statistics or quantization.mixed)
    watched = Watched(scores, _gathering(context, wanted), backward, head=feedback)
    original = run_original(
        checkpoint, context.tokens, watched, device=settings.device, store=context.store,
        progress=context.progress, journal=context.journal,
    )  # fmt: skip
    tables = UNQUANTIZED
    if quantization and not quantization.mixed:  # mixed bits are chosen later, when the plan is known
        tables = quantized_tables(checkpoint, quantization, original.head)
    return Measured(original, backward.curves if isinstance(backward, Sensitivity) else (), tables)


def _backward(context: Context, wanted: Sequence[ConvertOptions]) -> BackwardPass | None:
    """Return the backward pass that the conversions need; None if they need no gradients."""
    checkpoint, evidence, progress, journal = context.checkpoint, context.evidence, context.progress, context.journal
    rows = {name for options in wanted for name in _fisher_targets(checkpoint, options)}
    priced = [options for options in wanted if options.needs.curves]
    if priced:
        targets = targets_of(checkpoint, priced[0].roles)
        grid = Grid(priced[0].ridge, priced[0].rank_multiple, priced[0].seed)
        return Sensitivity(checkpoint, targets, grid, evidence, progress, rows, journal)
    return BackwardPass(rows, context.settings.seed, evidence, progress, journal) if rows else None


def _gathering(context: Context, wanted: Sequence[ConvertOptions]) -> Gathering | None:
    """Return the collector of input statistics for this pass; None if no conversion needs them before it compresses.

    A single conversion can also collect statistics while it compresses, only for the layers it compresses. But if the
    inputs are kept, collecting now is cheaper than running the model again.
    """
    checkpoint = context.checkpoint
    served = [options for options in wanted if not options.sequential]
    alone = [options for options in served if not options.needs.curves]
    first = any(options.needs.statistics for options in wanted) or len(alone) > 1
    if not first and not (alone and keeps_inputs(checkpoint, alone[0])):
        return None
    targets = {name for options in served for name in targets_of(checkpoint, options.roles)}
    # Uncompressed linears are quantized with the statistics of their inputs, so collect those as well.
    if any(options.mixes_bits for options in wanted) or any(options.quantization for options in served):
        targets |= decoder_linears(checkpoint).keys()
    prices = len(alone) < len(served)
    # Costs alone do not need exact products: each of their solves has a ridge, far larger than the rounding error.
    ends = {name for name in targets if role_of(name) is Role.DOWN} if prices else set()
    return Gathering(
        targets, context.evidence, exact=not prices or bool(alone), tokens=context.tokens.calibration.size, split=ends
    )


def _fisher_targets(checkpoint: Checkpoint, options: ConvertOptions) -> set[str]:
    """Return the names of weights that need Fisher information per row; of all layers if a score chooses layers."""
    if options.mixes_bits:
        return set(decoder_linears(checkpoint))
    if not options.needs.fisher_rows:
        return set()
    num_layers = int(checkpoint.config["num_hidden_layers"])
    layers = select_layers("all" if score_of(options.layers) else options.layers, num_layers)
    return {name for name in targets_of(checkpoint, options.roles) if layer_of(name) in layers}
