"""`--method auto`: divides one parameter budget for the whole model by measured costs of each module."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from curconvert.base.errors import InputError
from curconvert.base.roles import MODULAR, Role
from curconvert.methods.core.budgeted import Budgeted, positive_and_finite
from curconvert.methods.core.costs import Cost, of_both_sides, of_part
from curconvert.methods.core.method import Needs, option
from curconvert.options.settings import Settings

if TYPE_CHECKING:
    from curconvert.base.plan import MatrixPlan, Plan
    from curconvert.checkpoint.types import Checkpoint
    from curconvert.factorization.tasks import SharedTask
    from curconvert.factorization.types import FactorTask
    from curconvert.linalg.statistics import InputStatistics
    from curconvert.methods.core.context import Context, Measured

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Auto(Budgeted):
    """Compresses attention matrices to interpolative form and MLPs to fewer neurons, at sizes from measured costs.

    Attributes:
        max_kl: Limit of the mean KL on held-out calibration text, nats per token; finds the smallest model within it.
        share: Whether matrices of neighboring layers share one basis where this lowers the cost.
        scored: Whether to write the components with which `resize` cuts the artifact to any smaller size.
    """

    name: ClassVar[str] = "auto"
    stores: ClassVar[str] = "attention: r rows and coefficients; MLPs: fewer neurons; some matrices unchanged"
    summary: ClassVar[str] = "spends one budget for the whole model where it measures the smallest loss"
    sizes: ClassVar[tuple[str, ...]] = (*Budgeted.sizes, "max_kl")
    defaults: ClassVar[Mapping[str, Any]] = {**Budgeted.defaults, "self_text": 0.5}
    recorded: ClassVar[Mapping[str, str]] = {"form": "auto"}
    needs: ClassVar[Needs] = Needs(curves=True, statistics=True)

    max_kl: float | None = option("--max-kl")
    share: bool = option("--share", False)
    scored: bool = option("--scored", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_kl is not None:
            positive_and_finite("--max-kl", self.max_kl)

    def check(self, settings: Settings) -> None:
        """See `Method.check`."""
        super().check(settings)
        if settings.mixes_bits and self.max_kl is not None:
            raise InputError("--max-kl: cannot be combined with --bits-per-weight, which needs a size; use --keep")
        if self.scored and (self.share or settings.quantization is not None):
            raise InputError("--scored: cannot be combined with --share, --quantize or --bits-per-weight")

    @property
    def searches(self) -> bool:
        """See `Method.searches`."""
        return self.max_kl is not None

    @property
    def writes_components(self) -> bool:
        """See `Method.writes_components`."""
        return self.scored

    def first_form(self, role: Role) -> str:
        """See `Budgeted.first_form`."""
        return MODULAR.get(role, super().first_form(role))

    def decide(self, context: Context, measured: Measured) -> Plan:
        """Divide the budget, or search for the smallest size within `max_kl`; see `Method.decide`."""
        from curconvert.allocation.plans import allocated
        from curconvert.allocation.search import smallest
        from curconvert.methods.core.divergence import divergence

        checkpoint, settings = context.checkpoint, context.settings
        plan = self.plan(checkpoint, settings)
        if self.max_kl is None:
            return self._shared(
                allocated(plan, measured.curves, self.parameters(checkpoint, settings)), context, measured
            )
        trials = itertools.count(1)

        def measure(candidate: Plan) -> float:
            found = divergence(self, candidate, context, measured, f"search-{next(trials)}")
            logger.info("%d parameters: KL %.4f", candidate.parameters_after, found)
            return found

        return smallest(
            plan, measured.curves, self.max_kl, lambda separate: self._shared(separate, context, measured), measure
        )

    def _shared(self, separate: Plan, context: Context, measured: Measured) -> Plan:
        from curconvert.allocation.sharing import with_sharing

        if not self.share:
            return separate
        return with_sharing(
            separate, measured.curves, context.checkpoint, context.evidence, context.executor,
            ridge=context.settings.ridge, multiple=context.settings.rank_multiple,
        )  # fmt: skip

    def tasks(
        self, plans: Sequence[MatrixPlan], statistics: Mapping[str, InputStatistics], context: Context
    ) -> Iterator[FactorTask]:
        """Read one block's matrices and yield a task for each planned module; see `Method.tasks`."""
        from curconvert.factorization.projections import largest_first, read_projections
        from curconvert.factorization.tasks import AllocatedTask, mlp_task
        from curconvert.families.roles import role_of

        names, evidence = [plan.name for plan in plans], context.evidence
        ridge, dtype = context.settings.ridge, context.dtype
        parts = read_projections(names, evidence.statistics_of(names), context.checkpoint, dtype)
        mlp = [plan for plan in plans if plan.entry.joint]
        if mlp:
            (down,) = (plan for plan in mlp if role_of(plan.name) is Role.DOWN)
            assert down.rank is not None
            kept = evidence.kept(down.name, down.rank)
            yield mlp_task(mlp, parts, evidence.ridge(down.name), dtype, kept)
        for plan in largest_first([plan for plan in plans if plan not in mlp]):
            if plan.shared is not None:
                yield _shared_task(plan, context)
                continue
            part, fisher = parts[plan.name], evidence.fisher(plan.name)
            yield AllocatedTask(plan, part.weight, part.bias, part.statistics, fisher, ridge, dtype)

    @classmethod
    def for_share(cls, checkpoint: Checkpoint, keep: float) -> dict[str, Any]:
        """See `Method.for_share`."""
        return {"keep": keep}

    def cost(self, matrix: MatrixPlan, tokens: int) -> Cost:
        """See `Method.cost`."""
        return of_part(matrix, tokens) if matrix.entry.joint else of_both_sides(matrix, tokens)


def _shared_task(plan: MatrixPlan, context: Context) -> SharedTask:
    """Read both matrices of a pair. Each of the two blocks computes the factors again, so nothing is kept between."""
    from curconvert.factorization.projections import read_projections
    from curconvert.factorization.tasks import SharedTask

    assert plan.shared is not None
    names, evidence, dtype = plan.shared.matrices, context.evidence, context.dtype
    parts = read_projections(names, evidence.statistics_of(names), context.checkpoint, dtype)
    fishers = [evidence.fisher(name) for name in names]
    return SharedTask(plan, [parts[name] for name in names], fishers, context.settings.ridge, dtype)


METHOD = Auto
