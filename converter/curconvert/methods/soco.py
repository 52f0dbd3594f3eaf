"""`--method soco`: learns how many components each matrix keeps, with the model in memory (arXiv 2502.15092)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from curconvert.base.checks import at_least
from curconvert.methods.core.budgeted import Budgeted
from curconvert.methods.core.method import Needs, option
from curconvert.options.settings import Settings

if TYPE_CHECKING:
    from curconvert.base.plan import MatrixPlan, Plan
    from curconvert.checkpoint.types import Checkpoint
    from curconvert.factorization.types import FactorTask
    from curconvert.linalg.statistics import InputStatistics
    from curconvert.methods.core.context import Context, Measured


@dataclass(frozen=True)
class SoCo(Budgeted):
    """Trains a weight for each singular component, and drops the components with the smallest weights.

    Attributes:
        steps: Number of training steps.
    """

    name: ClassVar[str] = "soco"
    stores: ClassVar[str] = "r rows and the coefficients of the other rows: r(m + n − r)"
    summary: ClassVar[str] = (
        "learns how much of each matrix to keep, by training on the calibration text (SoCo, arXiv 2502.15092)"
    )
    recorded: ClassVar[Mapping[str, str]] = {"form": "learned"}
    needs: ClassVar[Needs] = Needs(statistics=True, resident=True)

    steps: int = option("--steps", 200)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("--steps", self.steps, 1)

    @property
    def learning_steps(self) -> int:
        """See `Method.learning_steps`."""
        return self.steps

    def plan(self, checkpoint: Checkpoint, settings: Settings, layers: tuple[int, ...] | None = None) -> Plan:
        """Reject a model that is too large for memory, and plan; see `Method.plan`."""
        from curconvert.training.learned_plan import check_resident

        check_resident(checkpoint)
        return super().plan(checkpoint, settings, layers)

    def decide(self, context: Context, measured: Measured) -> Plan:
        """Learn the weight of each component, and plan the ranks; see `Method.decide`."""
        from curconvert.training.learned_plan import learned_plan
        from curconvert.training.spectrum import Learning

        checkpoint, settings = context.checkpoint, context.settings
        learning = Learning(
            parameters=self.parameters(checkpoint, settings),
            steps=self.steps,
            ridge=settings.ridge,
            multiple=settings.rank_multiple,
            seed=settings.seed,
        )
        plan = self.plan(checkpoint, settings)
        tokens = context.tokens.calibration
        return learned_plan(checkpoint, plan, tokens, learning, context.evidence, context.progress, context.journal)

    def tasks(
        self, plans: Sequence[MatrixPlan], statistics: Mapping[str, InputStatistics], context: Context
    ) -> Iterator[FactorTask]:
        """Read one block's matrices and their learned factors, and yield a task for each; see `Method.tasks`."""
        from curconvert.factorization.projections import largest_first, read_projections
        from curconvert.factorization.tasks import LearnedTask

        names, evidence, dtype = [plan.name for plan in plans], context.evidence, context.dtype
        parts = read_projections(names, evidence.statistics_of(names), context.checkpoint, dtype)
        for plan in largest_first(plans):
            part = parts[plan.name]
            factors = evidence.components(plan.name)
            yield LearnedTask(plan, part.weight, part.bias, part.statistics, factors, dtype)


METHOD = SoCo
