"""What a conversion would do, from shapes alone: no weight is read."""

from __future__ import annotations

import bisect
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from curconvert.blocks.heads import Heads, attention_heads
from curconvert.checkpoint.types import Checkpoint
from curconvert.errors import InputError
from curconvert.factorization.types import Form, break_even_rank
from curconvert.options import STORED, ConvertOptions
from curconvert.selection.layers import layer_count, score_of, select_layers
from curconvert_runtime.forms import MODULAR, SPARSE, Shared, index_lengths, parameters

_COMMON_INPUT = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
_INPUT_ORDER = ("q_proj", "o_proj", "gate_proj", "down_proj")
MIN_SAVING = 0.05  # a matrix that would shrink by less stays dense: three products cost more than they save


@dataclass(frozen=True)
class MatrixPlan:
    """One linear of the model.

    Attributes:
        name: Canonical weight name.
        shape: (out_features, in_features).
        form: What it becomes.
        rank: Of the factors; None when dense.
        reason: Why it stays dense; None when compressed.
        shared: Where its R is another layer's too.
    """

    name: str
    shape: tuple[int, int]
    form: Form
    rank: int | None = None
    reason: str | None = None
    shared: Shared | None = None

    @property
    def parameters_before(self) -> int:
        """Numbers in W."""
        return math.prod(self.shape)

    @property
    def parameters_after(self) -> int:
        """Stored numbers of the form."""
        if self.rank is None:
            return self.parameters_before
        return parameters(self.form, self.shape, self.rank, self.shared, self.name)

    @property
    def index_numbers(self) -> int:
        """Numbers in the form's index vectors."""
        return sum(index_lengths(self.form, self.shape, self.rank, self.shared).values()) if self.rank else 0

    def stores(self, suffix: str) -> bool:
        """Tell whether a factor is stored under this matrix's name: a common R is only under its owner's."""
        return suffix.split(".", maxsplit=1)[0] != "R" or self.shared is None or self.shared.matrices[0] == self.name


@dataclass(frozen=True)
class Plan:
    """The whole conversion.

    Attributes:
        matrices: Every linear of every decoder block, in the model's order.
        layers: Layers to compress; None while a choice by score waits for hidden states.
        layer_total: How many layers will be compressed.
        other_parameters: Embedding, norms, biases, an untied head.
        biases: The checkpoint's biases of decoder linears.
    """

    matrices: tuple[MatrixPlan, ...]
    layers: tuple[int, ...] | None
    layer_total: int
    other_parameters: int
    biases: frozenset[str] = frozenset()

    @property
    def cut_biases(self) -> dict[str, int]:
        """New length of each bias that loses the entries of dropped rows, by name."""
        cut = {bias_of(m.name): m.rank for m in self.matrices if m.form == "modular_rows"}
        return {name: rank for name, rank in cut.items() if rank is not None and name in self.biases}

    @property
    def parameters_before(self) -> int:
        """Parameters of the checkpoint, a tied head counted once."""
        return self.other_parameters + sum(m.parameters_before for m in self.matrices)

    @property
    def parameters_after(self) -> int:
        """Stored numbers of the artifact."""
        before = {bias_of(m.name): m.shape[0] for m in self.matrices}
        dropped = sum(before[name] - length for name, length in self.cut_biases.items())
        return self.other_parameters - dropped + sum(m.parameters_after for m in self.matrices)


def layer_of(name: str) -> int:
    """Decoder layer of a canonical tensor name."""
    return int(name.split(".")[2])


def bias_of(name: str) -> str:
    """Name of the bias beside a weight."""
    return f"{name.removesuffix('weight')}bias"


def linear_of(name: str) -> str:
    """Linear of a canonical weight name, such as `q_proj`."""
    return name.split(".")[-2]


def distinct_inputs(shapes: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """Return the width of each distinct input among some linears, by the weight name of one that reads it.

    Queries, keys and values have one input, gate and up another.

    Args:
        shapes: (out_features, in_features), by weight name.
    """
    found = {}
    for name, (_, width) in shapes.items():
        linear = linear_of(name)
        found[name.replace(linear, _COMMON_INPUT.get(linear, linear))] = width
    return found


def by_input(plans: Sequence[MatrixPlan]) -> list[list[MatrixPlan]]:
    """Return one block's linears in groups that have one input, in the order in which a block computes these.

    Args:
        plans: Of linears among q, k, v, o, gate, up and down.
    """
    found: dict[str, list[MatrixPlan]] = {linear: [] for linear in _INPUT_ORDER}
    for plan in plans:
        linear = linear_of(plan.name)
        found[_COMMON_INPUT.get(linear, linear)].append(plan)
    return [group for group in found.values() if group]


def rank_for_density(form: Form, shape: tuple[int, int], density: float) -> int:
    """Largest rank at which a form stores at most this share of the matrix's numbers; 0 where there is none."""
    budget = density * math.prod(shape)
    ranks = range(1, break_even_rank(form, shape) + 1)
    return bisect.bisect_right(ranks, budget, key=lambda rank: parameters(form, shape, rank))


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
    forms = STORED[options.stored] if options.stored else (cast("Form", own.get(linear, options.form)),)
    plans = [_in_form(name, shape, form, options, heads) for form in forms]
    # Of one density the form of the highest rank is best, of one rank the smallest.
    return min(
        plans,
        key=lambda plan: (-(plan.rank or 0) if options.density else 0, plan.parameters_after + plan.index_numbers),
    )


def _in_form(name: str, shape: tuple[int, int], form: Form, options: ConvertOptions, heads: Heads | None) -> MatrixPlan:
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
        rank, asked = min(options.rank, break_even_rank(form, shape)), f"rank {options.rank}"
    saving = 1 - parameters(form, shape, rank) / math.prod(shape) if rank else 0.0
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
    check_context(checkpoint, options)
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


def decoder_linears(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """Return the shape of each linear of every decoder block, by canonical weight name, in the model's order."""
    shapes = {
        name: (info.shape[0], info.shape[1])
        for name, info in checkpoint.tensors.items()
        if name.startswith("model.layers.") and name.endswith("_proj.weight") and len(info.shape) == 2
    }
    return dict(sorted(shapes.items(), key=lambda item: (layer_of(item[0]), item[0])))


def total_parameters(checkpoint: Checkpoint) -> int:
    """Return the parameters of a checkpoint, a tied head counted once."""
    return sum(math.prod(info.shape) for info in checkpoint.tensors.values())


def uniform_density(checkpoint: Checkpoint, shapes: Collection[tuple[int, int]], target: int) -> float:
    """Return the share of their numbers that some matrices may keep for the model to have `target` parameters.

    Zero or less where the rest of the model has as many already, or there are no such matrices.
    """
    numbers = sum(m * n for m, n in shapes)
    return 1 - (total_parameters(checkpoint) - target) / numbers if numbers else 0.0


def keeps_inputs(checkpoint: Checkpoint, options: ConvertOptions) -> bool:
    """Tell whether the first pass keeps every linear's inputs: layers are chosen by it, and the tokens are few."""
    tokens = options.calibration.sequences * options.calibration.tokens_per_sequence
    few = tokens < int(checkpoint.config["hidden_size"])
    return few and score_of(options.layers) is not None and not options.sequential


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


def check_context(checkpoint: Checkpoint, options: ConvertOptions) -> None:
    """Refuse calibration sequences that are longer than the model's context.

    Raises:
        InputError: They are.
    """
    wanted, context = options.calibration.tokens_per_sequence, int(checkpoint.config["max_position_embeddings"])
    if wanted > context:
        raise InputError(f"--calibration-tokens {wanted}: the model's context is {context} tokens; ask for fewer")
