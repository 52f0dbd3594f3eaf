"""`--method neurons`: MLPs with fewer neurons (MoDeGPT, arXiv 2408.09632)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from curconvert.base.errors import InputError
from curconvert.base.roles import MODULAR, Role
from curconvert.families.family import linear_name
from curconvert.methods.core.costs import Cost, of_part
from curconvert.methods.core.sized import Sized
from curconvert.options.settings import Settings
from curconvert.options.targets import targets_for

if TYPE_CHECKING:
    from curconvert.base.plan import MatrixPlan
    from curconvert.factorization.types import FactorTask
    from curconvert.linalg.statistics import InputStatistics
    from curconvert.methods.core.context import Context


@dataclass(frozen=True)
class Neurons(Sized):
    """Keeps some rows of gate and up, and the same columns of down, corrected for the dropped neurons."""

    name: ClassVar[str] = "neurons"
    stores: ClassVar[str] = "r neurons of each MLP, no extra product"
    summary: ClassVar[str] = (
        f"removes MLP neurons of low leverage and refits {linear_name(Role.DOWN)} (MoDeGPT, arXiv 2408.09632)"
    )
    default_size: ClassVar[Mapping[str, float]] = {"density": 0.75}
    defaults: ClassVar[Mapping[str, Any]] = {"targets": targets_for(MODULAR)}
    recorded: ClassVar[Mapping[str, str]] = {"form": "modular"}

    def check(self, settings: Settings) -> None:
        """Reject targets other than the three linears of an MLP; see `Method.check`."""
        if settings.roles != MODULAR.keys():
            wanted = ",".join(targets_for(MODULAR))
            raise InputError(f"--targets {','.join(settings.targets)}: --method {self.name} takes {wanted}")

    def forms(self, role: Role) -> tuple[str, ...]:
        """Return the form of one of the three linears."""
        return (MODULAR.get(role, self.recorded["form"]),)

    def tasks(
        self, plans: Sequence[MatrixPlan], statistics: Mapping[str, InputStatistics], context: Context
    ) -> Iterator[FactorTask]:
        """Read one block's MLP and yield its task; see `Method.tasks`."""
        from curconvert.factorization.projections import read_projections
        from curconvert.factorization.tasks import mlp_task

        names = [plan.name for plan in plans]
        parts = read_projections(names, statistics, context.checkpoint, context.dtype)
        yield mlp_task(plans, parts, context.settings.ridge, context.dtype)

    def cost(self, matrix: MatrixPlan, tokens: int) -> Cost:
        """See `Method.cost`."""
        return of_part(matrix, tokens)


METHOD = Neurons
