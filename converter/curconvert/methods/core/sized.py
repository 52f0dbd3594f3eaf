"""Base of methods with one rank or density for all matrices."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from curconvert.base.checks import at_least, proper_share
from curconvert.base.errors import InputError
from curconvert.base.roles import Role
from curconvert.methods.core.method import Method, option
from curconvert.methods.core.planning import Shape, planned
from curconvert.options.settings import Settings
from curconvert.options.targets import LINEARS, target_roles

if TYPE_CHECKING:
    from curconvert.base.plan import MatrixPlan, Plan
    from curconvert.checkpoint.types import Checkpoint


@dataclass(frozen=True)
class Sized(Method):
    """Gives every matrix the same rank or density.

    Attributes:
        rank: Largest rank of a compressed matrix, or number of neurons to keep.
        density: Largest share of a compressed matrix's numbers to keep.
    """

    sizes: ClassVar[tuple[str, ...]] = ("rank", "density")
    default_size: ClassVar[Mapping[str, float]] = {"rank": 128}

    rank: int | None = option("--rank")
    density: float | None = option("--density")

    def __post_init__(self) -> None:
        if self.rank is not None:
            at_least("--rank", self.rank, 1)
        if self.density is not None:
            proper_share("--density", self.density)

    @property
    def asked(self) -> str:
        """The size in words, such as `rank 128`."""
        return f"density {self.density:g}" if self.density is not None else f"rank {self.rank}"

    @abstractmethod
    def forms(self, role: Role) -> tuple[str, ...]:
        """Return the forms in which a linear may be stored; `plan_matrix` takes the best one for the size."""

    def plan(self, checkpoint: Checkpoint, settings: Settings, layers: tuple[int, ...] | None = None) -> Plan:
        """Plan each matrix with `plan_matrix`; see `Method.plan`."""
        return planned(checkpoint, settings, self.plan_matrix, f"--{self.asked}", layers)

    def plan_matrix(self, name: str, shape: Shape) -> MatrixPlan:
        """Return the plan of one target matrix, with form and rank.

        The rank is at most the form's break-even rank (CURing, §3.2), which is at most the matrix's own rank. A matrix
        that would shrink by less than 5% stays dense. Linears of one module share a size, so they get the same result.

        Args:
            name: Canonical weight name.
            shape: (m, n).
        """
        from curconvert.families.roles import role_of

        plans = [self._in_form(name, shape, form) for form in self.forms(role_of(name))]
        # With a density, the form with the highest rank is best; with a rank, the smallest form.
        return min(
            plans,
            key=lambda plan: (-(plan.rank or 0) if self.density else 0, plan.parameters_after + plan.index_numbers),
        )

    def _in_form(self, name: str, shape: Shape, form: str) -> MatrixPlan:
        from curconvert.base.forms import rank_for_density, traits_of

        if self.density is not None:
            return self.saving(name, shape, form, rank_for_density(form, shape, self.density))
        assert self.rank is not None
        return self.saving(name, shape, form, min(self.rank, traits_of(form).break_even_rank(shape)))

    def saving(self, name: str, shape: Shape, form: str, rank: int) -> MatrixPlan:
        """Return the plan of a form at a rank, or of the dense matrix if the form saves less than 5%."""
        from curconvert.base.forms import MIN_SAVING
        from curconvert.base.plan import MatrixPlan
        from curconvert_runtime.format.forms import form_of

        saving = 1 - form_of(form).parameters(shape, rank) / math.prod(shape) if rank else 0.0
        if saving < MIN_SAVING:
            return MatrixPlan(name, shape, "dense", reason=f"{self.asked} would save less than {MIN_SAVING:.0%}")
        return MatrixPlan(name, shape, form, rank)

    @classmethod
    def for_size(cls, checkpoint: Checkpoint, target: int) -> dict[str, Any]:
        """Return the density for all target linears of every layer that gives the size; see `Method.for_size`."""
        from curconvert.allocation.plans import targets_of
        from curconvert.checkpoint.linears import total_parameters, uniform_density

        targets = cls.defaults.get("targets", LINEARS)
        linears = targets_of(checkpoint, target_roles(targets))
        fixed = cls.fixed(checkpoint)
        shapes = [shape for name, shape in linears.items() if name not in fixed]
        density = uniform_density(checkpoint, shapes, target)
        if density <= 0:
            rest = total_parameters(checkpoint) - sum(m * n for m, n in shapes)
            raise InputError(
                f"{target} parameters: the part that {cls.name} does not compress already has {rest}; keep more"
            )
        return {"density": density, "layers": "all", "targets": targets}

    @classmethod
    def fixed(cls, checkpoint: Checkpoint) -> Mapping[str, str]:
        """Return the targets that the method cannot compress in this model: reasons by weight name."""
        return {}
