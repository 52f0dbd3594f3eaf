"""The linears of a checkpoint's decoder blocks."""

from __future__ import annotations

import math
from collections.abc import Collection

from curconvert.base.names import layer_of
from curconvert.checkpoint.types import Checkpoint
from curconvert.families.roles import is_linear


def decoder_linears(checkpoint: Checkpoint) -> dict[str, tuple[int, int]]:
    """Return the shape of each linear of every decoder block, by canonical weight name, in the model's order."""
    shapes = {
        name: (info.shape[0], info.shape[1])
        for name, info in checkpoint.tensors.items()
        if is_linear(name) and len(info.shape) == 2
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
