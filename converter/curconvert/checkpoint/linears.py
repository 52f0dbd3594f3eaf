"""Lists the linears of a checkpoint's decoder blocks, and counts parameters."""

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
    """Return the number of parameters of a checkpoint; a tied lm_head counts once."""
    return sum(math.prod(info.shape) for info in checkpoint.tensors.values())


def uniform_density(checkpoint: Checkpoint, shapes: Collection[tuple[int, int]], target: int) -> float:
    """Return the density of matrices with these shapes at which the whole model has `target` parameters.

    It is zero or less if the rest of the model already has as many, and zero if `shapes` is empty.
    """
    numbers = sum(m * n for m, n in shapes)
    return 1 - (total_parameters(checkpoint) - target) / numbers if numbers else 0.0
