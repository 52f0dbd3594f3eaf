"""One size of the whole model for every method, so that methods can be compared."""

from __future__ import annotations

import math
from typing import Any

from curconvert.checkpoint.types import Checkpoint
from curconvert.errors import InputError
from curconvert.options import LINEARS, ConvertOptions
from curconvert.planning import decoder_linears, linear_of
from curconvert_runtime.forms import MODULAR


def total_parameters(checkpoint: Checkpoint) -> int:
    """Return the parameters of a checkpoint, a tied head counted once."""
    return sum(math.prod(info.shape) for info in checkpoint.tensors.values())


def options_for_size(checkpoint: Checkpoint, method: str, target: int, **values: Any) -> ConvertOptions:
    """Return a method's options for a size of the whole model.

    `auto` takes the size itself. Any other method gets the one density of all seven linears of every layer (`neurons`:
    of the three of the MLP) that gives it.

    Args:
        checkpoint: The opened model.
        method: Name of a preset.
        target: Parameters of the whole model.
        values: Further options.

    Raises:
        InputError: The method cannot make the model so small.
    """
    if method == "auto":
        return ConvertOptions.for_method(method, target_parameters=target, **values)
    targets = tuple(MODULAR) if method == "neurons" else LINEARS
    shapes = [shape for name, shape in decoder_linears(checkpoint).items() if linear_of(name) in targets]
    before, numbers = total_parameters(checkpoint), sum(m * n for m, n in shapes)
    density = 1 - (before - target) / numbers if numbers else 0.0
    if density <= 0:
        raise InputError(
            f"{target} parameters: all that {method} does not compress has {before - numbers} already; keep more"
        )
    return ConvertOptions.for_method(method, density=density, layers="all", targets=targets, **values)
