"""What is trained of a model, and losses towards the original."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from curconvert.blocks.modules import CURLinear, InterpolativeLinear
from curconvert.blocks.skeleton import canonical_parameters
from curconvert.device import products_in
from curconvert.healing.options import HealOptions, Trained
from curconvert.healing.training import Loss

Ids = NDArray[np.int64]
_ROWS = 8  # sequences that are measured at once


def trainable(module: nn.Module, train: Trained, prefix: str = "") -> dict[str, nn.Parameter]:
    """Free what healing trains, freeze the rest, and return the former by the names of the stored tensors.

    Args:
        module: A model, or one decoder block.
        train: See `HealOptions`.
        prefix: Of the module's names.
    """
    module.requires_grad_(False)
    found = {}
    for name, owner, attribute in canonical_parameters(module, prefix):
        linking = (attribute == "U" and isinstance(owner, CURLinear)) or (
            attribute == "T" and isinstance(owner, InterpolativeLinear)
        )
        parameter = getattr(owner, attribute)
        if linking or (train == "u+norms" and attribute == "weight" and parameter.ndim == 1):
            found[name] = parameter.requires_grad_()
    return found


def keep_few_activations(model: nn.Module) -> None:
    """Let a model compute each block's activations again on the way back; nothing is dropped out."""
    # The older name until transformers 5 renamed it.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})  # type: ignore[operator]
    model.train()  # without it transformers keeps them all
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010 - mypy takes it for a tensor


def distillation(student: nn.Module, teacher: nn.Module, ids: Ids, options: HealOptions, dtype: torch.dtype) -> Loss:
    """Return the loss of some sequences: hidden states between blocks, cross-entropy, divergence.

    The hidden states are those that leave each block but the last, as in CURing; the embedding's are the same in both.

    Args:
        student: transformers' model with factored linears.
        teacher: The original.
        ids: Training sequences, (sequences, tokens).
        options: Weights of the parts.
        dtype: Of products.
    """

    def loss(chosen: NDArray[np.intp]) -> Tensor:
        tokens = torch.from_numpy(ids[chosen])
        with products_in(dtype):
            with torch.no_grad():
                wanted = teacher(input_ids=tokens, use_cache=False, output_hidden_states=True)
            found = student(input_ids=tokens, use_cache=False, output_hidden_states=True)
        total = torch.zeros(())
        if options.hidden:
            pairs = list(zip(found.hidden_states[1:-1], wanted.hidden_states[1:-1], strict=True))
            total = total + options.hidden * sum(functional.mse_loss(ours, theirs) for ours, theirs in pairs) / len(
                pairs
            )
        if options.ce:
            total = total + options.ce * functional.cross_entropy(
                found.logits[:, :-1].float().flatten(0, 1), tokens[:, 1:].flatten()
            )
        if options.kl:
            total = total + options.kl * divergence(found.logits, wanted.logits)
        return total

    return loss


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
