"""`--method dense`: only quantizes matrices, with the statistics of their inputs on the calibration text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from curconvert.base.errors import InputError
from curconvert.methods.core.method import SIZES, Method
from curconvert.methods.core.planning import NOT_SELECTED
from curconvert.options.settings import Settings
from curconvert.options.targets import LINEARS

if TYPE_CHECKING:
    from curconvert.base.plan import MatrixPlan, Plan
    from curconvert.checkpoint.types import Checkpoint
    from curconvert.factorization.types import FactorTask
    from curconvert.linalg.statistics import InputStatistics
    from curconvert.methods.core.context import Context


@dataclass(frozen=True)
class Dense(Method):
    """Factorizes no matrix."""

    name: ClassVar[str] = "dense"
    stores: ClassVar[str] = "all numbers, quantized"
    summary: ClassVar[str] = "keeps every number, for --quantize and --bits-per-weight"
    defaults: ClassVar[Mapping[str, Any]] = {"layers": "all", "targets": LINEARS}
    recorded: ClassVar[Mapping[str, str]] = {"form": "dense"}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the method; reject any size."""
        given = [flag for size, flag in SIZES.items() if size in values]
        if given:
            raise InputError(f"{given[0]}: --method {cls.name} keeps every number; it takes no size")
        return super().of(values)

    @property
    def full_metric(self) -> bool:
        """See `Method.full_metric`."""
        return False

    def check(self, settings: Settings) -> None:
        """Reject settings under which the method would do nothing; see `Method.check`."""
        if settings.quantization is None or settings.layers != "all":
            raise InputError("--method dense only quantizes: give --quantize or --bits-per-weight, and no --layers")

    def plan(self, checkpoint: Checkpoint, settings: Settings, layers: tuple[int, ...] | None = None) -> Plan:
        """Return a plan in which every linear stays dense; see `Method.plan`."""
        from curconvert.allocation.plans import assemble
        from curconvert.base.plan import MatrixPlan
        from curconvert.calibration.text import check_context
        from curconvert.checkpoint.linears import decoder_linears

        check_context(checkpoint, settings.calibration)
        linears = decoder_linears(checkpoint)
        matrices = [MatrixPlan(name, shape, "dense", reason=NOT_SELECTED) for name, shape in linears.items()]
        return assemble(checkpoint, matrices, (), 0)

    def tasks(
        self, plans: Sequence[MatrixPlan], statistics: Mapping[str, InputStatistics], context: Context
    ) -> Iterator[FactorTask]:
        """Yield no task."""
        yield from ()


METHOD = Dense
