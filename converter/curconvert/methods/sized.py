"""One size of the whole model for every method, so that methods can be compared."""

from __future__ import annotations

from typing import Any

from curconvert.base.errors import InputError
from curconvert.base.names import layer_of, linear_of
from curconvert.checkpoint.linears import decoder_linears, total_parameters, uniform_density
from curconvert.checkpoint.types import Checkpoint
from curconvert.families.heads import attention_heads
from curconvert.methods.planning import obstacle
from curconvert.options.convert import LINEARS, ConvertOptions
from curconvert_runtime.format.modules import MODULAR


def options_for_size(checkpoint: Checkpoint, method: str, target: int, **values: Any) -> ConvertOptions:
    """Return a method's options for a size of the whole model.

    `auto` and `soco` take the size itself. Any other method gets the one density of all seven linears of every layer
    (`neurons`: of the three of the MLP; `modegpt`: of those whose heads can get smaller) that gives it.

    Args:
        checkpoint: The opened model.
        method: Name of a preset.
        target: Parameters of the whole model.
        values: Further options.

    Raises:
        InputError: The method cannot make the model so small.
    """
    if method in ("auto", "soco"):
        return ConvertOptions.for_method(method, target_parameters=target, **values)
    targets = tuple(MODULAR) if method == "neurons" else LINEARS
    heads = attention_heads(checkpoint.config) if method == "modegpt" else None
    shapes = [
        shape
        for name, shape in decoder_linears(checkpoint).items()
        if linear_of(name) in targets and obstacle(name, heads[layer_of(name)] if heads else None) is None
    ]
    density = uniform_density(checkpoint, shapes, target)
    if density <= 0:
        rest = total_parameters(checkpoint) - sum(m * n for m, n in shapes)
        raise InputError(f"{target} parameters: all that {method} does not compress has {rest} already; keep more")
    return ConvertOptions.for_method(method, density=density, layers="all", targets=targets, **values)
