"""What a conversion would do, from shapes alone: no weight is read."""

from __future__ import annotations

import math
from collections.abc import Sequence

from curconvert.allocation.plans import assemble
from curconvert.base.errors import InputError
from curconvert.base.forms import MIN_SAVING, rank_for_density
from curconvert.base.names import layer_of, linear_of
from curconvert.base.plan import MatrixPlan, Plan
from curconvert.calibration.text import check_context
from curconvert.checkpoint.linears import decoder_linears
from curconvert.checkpoint.types import Checkpoint
from curconvert.families.heads import Heads, attention_heads
from curconvert.options.convert import STORED, ConvertOptions
from curconvert.selection.layers import layer_count, score_of, select_layers
from curconvert_runtime.format.forms import form_of
from curconvert_runtime.format.modules import MODULAR, SPARSE


def obstacle(name: str, heads: Heads | None) -> str | None:
    """Return why a linear's heads cannot get smaller, or None.

    Args:
        name: Canonical weight name.
        heads: Its layer's; None where heads do not matter.
    """
    if heads is not None and heads.normed and linear_of(name) in ("q_proj", "k_proj"):
        return "a norm follows it, which dropped dimensions would change"
    return None


def plan_matrix(name: str, shape: tuple[int, int], options: ConvertOptions, heads: Heads | None = None) -> MatrixPlan:
    """Decide rank and form of one target matrix.

    The rank is capped by the form's break-even rank (CURing, §3.2), which is at most the matrix's own; a matrix that
    would shrink by less than 5 % stays dense. Linears that get smaller together have one size in common, so they get
    one verdict.

    Args:
        name: Canonical weight name.
        shape: (m, n).
        options: Form and size.
        heads: Its layer's, for the form `modules`.
    """
    linear = linear_of(name)
    own = {"modular": MODULAR, "modules": MODULAR | SPARSE}.get(options.form, {})
    forms = STORED[options.stored] if options.stored else (own.get(linear, options.form),)
    plans = [_in_form(name, shape, form, options, heads) for form in forms]
    # Of one density the form of the highest rank is best, of one rank the smallest.
    return min(
        plans,
        key=lambda plan: (-(plan.rank or 0) if options.density else 0, plan.parameters_after + plan.index_numbers),
    )


def _in_form(name: str, shape: tuple[int, int], form: str, options: ConvertOptions, heads: Heads | None) -> MatrixPlan:
    linear = linear_of(name)
    reason = obstacle(name, heads)
    if reason is not None:
        return MatrixPlan(name, shape, "dense", reason=reason)
    if heads is not None and linear in SPARSE:
        assert options.density is not None
        rank, asked = heads.count(linear) * heads.kept(linear, options.density), f"density {options.density:g}"
        if rank == 0:
            return MatrixPlan(name, shape, "dense", reason=f"{asked} leaves nothing of a head")
    elif options.density is not None:
        rank, asked = rank_for_density(form, shape, options.density), f"density {options.density:g}"
    else:
        assert options.rank is not None
        rank, asked = min(options.rank, form_of(form).break_even_rank(shape)), f"rank {options.rank}"
    saving = 1 - form_of(form).parameters(shape, rank) / math.prod(shape) if rank else 0.0
    if saving < MIN_SAVING:
        return MatrixPlan(name, shape, "dense", reason=f"{asked} would save less than {MIN_SAVING:.0%}")
    return MatrixPlan(name, shape, form, rank)


def make_plan(checkpoint: Checkpoint, options: ConvertOptions, layers: tuple[int, ...] | None = None) -> Plan:
    """Plan a conversion.

    Args:
        checkpoint: The opened model.
        options: Validated options.
        layers: The chosen layers, once known; otherwise a choice by score is shown on as many inner layers.

    Raises:
        InputError: Nothing would be compressed at all, or the calibration sequences do not fit the model.
    """
    check_context(checkpoint, options.calibration)
    num_layers = int(checkpoint.config["num_hidden_layers"])
    total = layer_count(options.layers, num_layers)
    if total == 0:
        raise InputError(
            f"--layers {options.layers}: the model has {num_layers} layers and the first and the last are never "
            "candidates, so nothing would be compressed; use --layers all or a list"
        )
    known = layers
    if layers is None and score_of(options.layers) is None:
        known = select_layers(options.layers, num_layers)
    shown = known if known is not None else tuple(range(num_layers - 1 - total, num_layers - 1))
    linears = decoder_linears(checkpoint)
    if options.form == "dense":
        reason = "not selected"
        return assemble(
            checkpoint, [MatrixPlan(name, shape, "dense", reason=reason) for name, shape in linears.items()], (), 0
        )
    heads = heads_of(checkpoint, options)
    matrices = []
    for name, shape in linears.items():
        if layer_of(name) in shown and linear_of(name) in options.targets:
            matrices.append(plan_matrix(name, shape, options, heads[layer_of(name)]))
        else:
            matrices.append(MatrixPlan(name, shape, "dense", reason="not selected"))
    if all(m.form == "dense" for m in matrices):
        size = f"--density {options.density:g}" if options.density is not None else f"--rank {options.rank}"
        raise InputError(
            f"{size} with --targets {','.join(options.targets)}: no selected matrix would get at least "
            f"{MIN_SAVING:.0%} smaller, so nothing would be compressed; keep less or choose larger targets"
        )
    return assemble(checkpoint, matrices, known, total)


def heads_of(checkpoint: Checkpoint, options: ConvertOptions) -> Sequence[Heads | None]:
    """Return each layer's heads where the form asks for them, otherwise None for each."""
    if options.form == "modules":
        return attention_heads(checkpoint.config)
    return [None] * int(checkpoint.config["num_hidden_layers"])


def keeps_inputs(checkpoint: Checkpoint, options: ConvertOptions) -> bool:
    """Tell whether the first pass keeps every linear's inputs: layers are chosen by it, and the tokens are few."""
    tokens = options.calibration.sequences * options.calibration.tokens_per_sequence
    few = tokens < int(checkpoint.config["hidden_size"])
    return few and score_of(options.layers) is not None and not options.sequential
