"""Checks that a checkpoint has exactly the expected tensors, and decides whether its lm_head is tied."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch

from curconvert.base.errors import InputError
from curconvert.checkpoint.ignore import ignore_options, some
from curconvert.checkpoint.types import TensorInfo
from curconvert.families.family import BLOCKS

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

logger = logging.getLogger(__name__)


def check_layers(tensors: Mapping[str, TensorInfo], layers: int, source: str, hint: str = "") -> None:
    """Check that every layer of the config is stored, before the model is built, which takes time and memory.

    `hint` ends the message.

    Raises:
        InputError: A layer has no tensor.
    """
    stored = {name.split(".")[2] for name in tensors if name.startswith(f"{BLOCKS}.")}
    missing = [number for number in range(layers) if str(number) not in stored]
    if missing:
        raise InputError(
            f"{source}: all tensors {BLOCKS}.{missing[0]}.* are missing; the config says num_hidden_layers {layers}"
            f"{hint}"
        )


def check_tensors(
    tensors: Mapping[str, TensorInfo],
    expected: Mapping[str, tuple[int, ...]],
    source: str = "checkpoint",
    hint: str = "",
) -> None:
    """Check that the stored tensors are exactly those that the config requires.

    Args:
        tensors: The stored tensors.
        expected: Name and shape of each tensor that the config requires.
        source: Name of the checkpoint in messages.
        hint: End of the message about missing tensors.

    Raises:
        InputError: Tensors are missing, unexpected or of another shape; the message names the first few.
    """
    if missing := [name for name in expected if name not in tensors]:
        raise InputError(f"{source}: {_some(missing)} missing; the config does not describe these weights{hint}")
    if extra := [name for name in tensors if name not in expected]:
        raise InputError(
            f"{source}: {_some(extra)} unexpected; the config does not describe these weights. If the model works "
            f"without {'it' if len(extra) == 1 else 'them'}, convert or export it with "
            f"{ignore_options(extra, expected)}"
        )
    wrong = [name for name, shape in expected.items() if tensors[name].shape != shape]
    if wrong:
        found, wanted = tensors[wrong[0]].shape, expected[wrong[0]]
        raise InputError(
            f"{source}: {_some(wrong)} mis-shaped: {wrong[0]} is {list(found)}, the config says {list(wanted)}"
        )


def resolve_tying(
    tensors: Mapping[str, TensorInfo], tied: bool, read: Callable[[str], torch.Tensor], source: str, hint: str = ""
) -> bool:
    """Tell from the stored tensors whether the lm_head is the embedding.

    Args:
        tensors: The stored tensors.
        tied: `tie_word_embeddings` of the config.
        read: Reads a stored tensor.
        source: Name of the checkpoint in messages.
        hint: End of the message about a missing lm_head.

    Returns:
        Whether the model is tied. A stored lm_head that differs from the embedding overrules the config.

    Raises:
        InputError: The config says untied, and there is no lm_head.
    """
    if HEAD not in tensors:
        if not tied:
            raise InputError(
                f"{source}: tensor {HEAD} is missing and tie_word_embeddings is false; if the lm_head is the "
                f"embedding, pass --config-set tie_word_embeddings=true{hint}"
            )
        return True
    if not tied:
        return False
    if EMBEDDING not in tensors or _same_bytes(HEAD, EMBEDDING, tensors, read):
        return True
    logger.warning("%s: tie_word_embeddings is true but %s differs from %s; treated as untied", source, HEAD, EMBEDDING)
    return False


def _same_bytes(
    one: str, other: str, tensors: Mapping[str, TensorInfo], read: Callable[[str], torch.Tensor], rows: int = 4096
) -> bool:
    if (tensors[one].dtype, tensors[one].shape) != (tensors[other].dtype, tensors[other].shape):
        return False
    # Compare bytes, so that equal NaNs count as equal; and a few rows at a time, to avoid a second copy in memory.
    first, second = read(one).view(torch.uint8), read(other).view(torch.uint8)
    return all(
        torch.equal(first[start : start + rows], second[start : start + rows]) for start in range(0, len(first), rows)
    )


def _some(names: Sequence[str]) -> str:
    return f"{some(names)} {'is' if len(names) == 1 else 'are'}"
