"""Base of methods with one size for the whole model, which choose each matrix's size by its measured cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from curconvert.base.checks import at_least, proper_share
from curconvert.base.errors import InputError
from curconvert.base.roles import Role
from curconvert.methods.core.method import Method, option
from curconvert.methods.core.planning import NOT_SELECTED, bytes_per_number
from curconvert.options.settings import Settings
from curconvert.options.targets import LINEARS

if TYPE_CHECKING:
    from curconvert.base.plan import Plan
    from curconvert.checkpoint.types import Checkpoint

_SEARCHED_KEEP = 0.8  # size that a dry run shows for --max-kl, which finds the size later
_HEADER_BYTES = 160  # of a safetensors header, per tensor


@dataclass(frozen=True)
class Budgeted(Method):
    """Sizes the whole model by one budget.

    Attributes:
        keep: Share of the model's parameters to keep, embedding included.
        target_parameters: Number of parameters to keep.
        target_bytes: Largest size of the weights' file.
    """

    sizes: ClassVar[tuple[str, ...]] = ("keep", "target_parameters", "target_bytes")
    default_size: ClassVar[Mapping[str, float]] = {"keep": 0.9}
    defaults: ClassVar[Mapping[str, Any]] = {"layers": "all", "targets": LINEARS}
    sizes_whole: ClassVar[bool] = True
    reads_evidence: ClassVar[bool] = True

    keep: float | None = option("--keep")
    target_parameters: int | None = option("--target-params")
    target_bytes: int | None = option("--target-bytes")

    def __post_init__(self) -> None:
        if self.keep is not None:
            proper_share("--keep", self.keep)
        if self.target_parameters is not None:
            at_least("--target-params", self.target_parameters, 1)
        if self.target_bytes is not None:
            at_least("--target-bytes", self.target_bytes, 1)

    def check(self, settings: Settings) -> None:
        """See `Method.check`."""
        if settings.quantization is not None and self.target_bytes is not None:
            raise InputError("--target-bytes cannot be combined with quantization; use --keep or --target-params")

    def first_form(self, role: Role) -> str:
        """Return the form that a linear has in plans made before anything is measured."""
        return "interpolative"

    def parameters(self, checkpoint: Checkpoint, settings: Settings) -> int:
        """Return the parameters that the whole model may keep.

        Args:
            checkpoint: The opened model.
            settings: Targets, dtype and quantization.

        Raises:
            InputError: The target is not smaller than the model.
        """
        from curconvert.allocation.plans import targets_of
        from curconvert.checkpoint.linears import total_parameters

        before, itemsize = total_parameters(checkpoint), bytes_per_number(checkpoint, settings)
        if self.target_parameters is not None:
            target, asked = self.target_parameters, f"--target-params {self.target_parameters}"
        elif self.target_bytes is not None:
            # Subtract the longest index vectors of any form, and a header entry for each tensor.
            shapes = targets_of(checkpoint, settings.roles)
            indices = sum(m + min(m, n) for m, n in shapes.values())
            rest = self.target_bytes - 4 * indices - _HEADER_BYTES * (len(checkpoint.tensors) + 3 * len(shapes))
            target, asked = int(rest / itemsize), f"--target-bytes {self.target_bytes}"
        else:
            share = _SEARCHED_KEEP if self.keep is None else self.keep
            target, asked = int(share * before), f"--keep {share:g}"
        if not 0 < target < before:
            raise InputError(
                f"{asked}: the model has {before} parameters, {int(before * itemsize)} bytes; ask for fewer"
            )
        return target

    def plan(self, checkpoint: Checkpoint, settings: Settings, layers: tuple[int, ...] | None = None) -> Plan:
        """Plan every target at one density, before anything is measured; see `Method.plan`."""
        from curconvert.allocation.plans import assemble, targets_of
        from curconvert.base.forms import rank_for_density
        from curconvert.base.names import layer_of
        from curconvert.base.plan import MatrixPlan
        from curconvert.calibration.text import check_context
        from curconvert.checkpoint.linears import decoder_linears, uniform_density
        from curconvert.families.roles import role_of

        check_context(checkpoint, settings.calibration)
        shapes = targets_of(checkpoint, settings.roles)
        target, multiple = self.parameters(checkpoint, settings), settings.rank_multiple
        density = uniform_density(checkpoint, shapes.values(), target)
        matrices = []
        for name, shape in decoder_linears(checkpoint).items():
            if name not in shapes:
                matrices.append(MatrixPlan(name, shape, "dense", reason=NOT_SELECTED))
                continue
            form = self.first_form(role_of(name))
            rank = rank_for_density(form, shape, density) // multiple * multiple
            if density <= 0 or rank < 1:
                raise InputError(
                    f"{target} parameters: {name} would keep {density:.1%} of its numbers, which leaves no rank that "
                    f"is a multiple of {multiple}; keep more, or allow more --targets"
                )
            matrices.append(MatrixPlan(name, shape, form, rank))
        found = tuple(sorted({layer_of(name) for name in shapes}))
        return assemble(checkpoint, matrices, found, len(found))


def positive_and_finite(option: str, value: float) -> None:
    """Raise InputError unless a divergence is above 0 and finite."""
    if not 0 < value < math.inf:
        raise InputError(f"{option} {value}: expected nats per token, above 0")
