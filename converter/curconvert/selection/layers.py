"""Chooses the decoder layers to compress, from the specification of `--layers`."""

from __future__ import annotations

import re

import numpy as np

from curconvert.base.errors import InputError
from curconvert.base.types import Vector
from curconvert.selection.scores import SCORES

_SPEC = "angular, influence or rank, each also with :N, all, or a list of numbers and ranges such as 3,5,8-12"
PAPER_SHARE = 10 / 32  # CURing compresses 10 of Llama-3.1-8B's 32 layers


def score_of(spec: str) -> str | None:
    """Return the score that a specification names, one of `SCORES`; None if it needs no hidden states."""
    head = spec.split(":", maxsplit=1)[0]
    return head if head in SCORES else None


def layer_count(spec: str, num_layers: int) -> int:
    """Return how many layers a specification selects; this needs no hidden states.

    Raises:
        InputError: The specification is malformed or matches no layer.
    """
    score = score_of(spec)
    if score is None:
        return len(select_layers(spec, num_layers))
    candidates = max(num_layers - 2, 0)
    if spec == score:
        return min(round(PAPER_SHARE * num_layers), candidates)
    match = re.fullmatch(rf"{score}:(\d{{1,9}})", spec)
    if match is None:
        raise InputError(f"--layers {spec!r}: expected {_SPEC}")
    count = int(match[1])
    if not 1 <= count <= candidates:
        raise InputError(
            f"--layers {spec}: the model has {num_layers} layers, of which the first and the last are never "
            f"candidates; ask for 1 to {candidates}, or use --layers all"
        )
    return count


def select_layers(spec: str, num_layers: int, scores: Vector | None = None) -> tuple[int, ...]:
    """Return the layers to compress, ascending.

    Args:
        spec: A score (the lowest 10/32 of the layers, as many as in CURing), a score with `:N`, `all`, or explicit
            numbers and ranges.
        num_layers: Number of decoder layers.
        scores: (layers,), for a specification that names a score; the first and last are not read.

    Raises:
        InputError: The specification is malformed or matches no layer.
    """
    if score_of(spec):
        count = layer_count(spec, num_layers)
        assert scores is not None
        inner = np.arange(1, num_layers - 1)
        return tuple(sorted(int(i) for i in inner[np.argsort(scores[inner], kind="stable")[:count]]))
    if spec == "all":
        return tuple(range(num_layers))
    layers: set[int] = set()
    for part in spec.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        if match is None:
            raise InputError(f"--layers {spec!r}: {part.strip()!r} is not understood; expected {_SPEC}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= num_layers:
            raise InputError(f"--layers {part.strip()}: the model's layers are 0 to {num_layers - 1}")
        layers.update(range(first, last + 1))
    return tuple(sorted(layers))
