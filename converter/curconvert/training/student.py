"""Chooses the trainable tensors of a model, and computes losses and held-out measures."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from curconvert.base.device import products_in
from curconvert.base.forms import traits_of
from curconvert.base.types import Ids
from curconvert.blocks.linears.factored import FactoredLinear
from curconvert.families.skeleton import canonical_parameters
from curconvert.options.heal import HealOptions, Trained
from curconvert.training.examples import IGNORED, Examples
from curconvert.training.loop import Loss

_ROWS = 8  # sequences measured at once


def trainable(module: nn.Module, train: Trained, prefix: str = "") -> dict[str, nn.Parameter]:
    """Return the parameters that healing trains, by the names of the stored tensors; freeze all others.

    Args:
        module: A model, or one decoder block.
        train: See `HealOptions`.
        prefix: Prefix of the module's tensor names.
    """
    module.requires_grad_(False)
    found = {}
    for name, owner, attribute in canonical_parameters(module, prefix):
        linking = isinstance(owner, FactoredLinear) and attribute == traits_of(owner.form.name).linking
        parameter = getattr(owner, attribute)
        if linking or (train == "u+norms" and attribute == "weight" and parameter.ndim == 1):
            found[name] = parameter.requires_grad_()
    return found


def keep_few_activations(model: nn.Module) -> None:
    """Turn on activation checkpointing, which recomputes each block in the backward pass; turn off dropout."""
    # transformers before version 5 has only the second name.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})  # type: ignore[operator]
    model.train()  # transformers checkpoints in training mode only
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010 - mypy takes it for a tensor


def training_loss(
    student: nn.Module, teacher: nn.Module | None, examples: Examples, options: HealOptions, dtype: torch.dtype
) -> Loss:
    """Return the loss of some sequences: weighted hidden-state error, cross-entropy and divergence.

    The hidden states are the outputs of all blocks except the last, as in CURing; the embedding is the same in both.

    Args:
        student: transformers' model with factored linears.
        teacher: The original; None if neither its hidden states nor its logits have a weight.
        examples: Training sequences.
        options: Weights of the parts.
        dtype: Dtype of products.
    """

    def loss(chosen: NDArray[np.intp]) -> Tensor:
        ids, targets, learned = examples.batch(chosen)
        with products_in(dtype):
            found = student(input_ids=ids, use_cache=False, output_hidden_states=options.hidden > 0)
        total = torch.zeros(())
        if options.ce:
            total = total + options.ce * cross_entropy(found.logits, targets)
        if teacher is None:
            return total
        with products_in(dtype), torch.no_grad():
            wanted = teacher(input_ids=ids, use_cache=False, output_hidden_states=options.hidden > 0)
        if options.hidden:
            pairs = list(zip(found.hidden_states[1:-1], wanted.hidden_states[1:-1], strict=True))
            total = total + options.hidden * sum(
                functional.mse_loss(_those(ours, learned), _those(theirs, learned)) for ours, theirs in pairs
            ) / len(pairs)
        if options.kl:
            total = total + options.kl * divergence(_those(found.logits, learned), _those(wanted.logits, learned))
        return total

    return loss


def _those(states: Tensor, learned: Tensor) -> Tensor:
    """Return the states at the positions that count; the unchanged tensor if all count."""
    return states if learned.all() else states[learned]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy, nats, over the positions that have a target.

    Args:
        logits: (sequences, tokens, vocabulary).
        targets: (sequences, tokens), see `Batch`.
    """
    return functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def divergence(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the mean KL(theirs ‖ ours) over positions, nats.

    Args:
        ours: Logits, (…, vocabulary).
        theirs: The original's, the same shape.
    """
    q, p = (logits.float().flatten(0, -2).log_softmax(-1) for logits in (ours, theirs))
    return functional.kl_div(q, p, log_target=True, reduction="batchmean")


def held_out_divergence(student: nn.Module, teacher: nn.Module, ids: Ids) -> float:
    """Return the mean KL(teacher ‖ student) on sequences, nats per token, in float32.

    Args:
        student: The compressed model.
        teacher: The original.
        ids: (sequences, tokens).
    """
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(ids), _ROWS):
            tokens = torch.from_numpy(ids[start : start + _ROWS])
            answers = [model(input_ids=tokens, use_cache=False).logits for model in (student, teacher)]
            total += len(tokens) * divergence(*answers).item()
    return total / len(ids)


def held_out_cross_entropy(student: nn.Module, examples: Examples) -> float:
    """Return the mean cross-entropy on examples, nats per token that counts, in float32."""
    total, counts = 0.0, examples.counts
    with torch.no_grad():
        for rows in np.split(np.arange(len(examples)), range(_ROWS, len(examples), _ROWS)):
            ids, targets, _ = examples.batch(rows)
            total += (
                int(counts[rows].sum()) * cross_entropy(student(input_ids=ids, use_cache=False).logits, targets).item()
            )
    return total / int(counts.sum())


def held_out_measure(
    student: nn.Module, teacher: nn.Module | None, examples: Examples, options: HealOptions
) -> Callable[[], float]:
    """Return the function that measures progress: the divergence from the original, or the task's cross-entropy.

    Args:
        student: The compressed model.
        teacher: The original; only the objective `distill` needs it.
        examples: Held-out examples.
        options: The objective.
    """
    if options.objective == "ce":
        return lambda: held_out_cross_entropy(student, examples)
    assert teacher is not None  # HealOptions.needs_original
    return partial(held_out_divergence, student, teacher, examples.ids)
