"""What a method of compression is: its options, what it needs to know, how it plans and what it computes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

from curconvert.base.errors import InputError
from curconvert.methods.core.costs import Cost, cost_of
from curconvert.options.settings import Settings

if TYPE_CHECKING:  # options are checked before torch is imported
    from curconvert.base.plan import MatrixPlan, Plan
    from curconvert.checkpoint.types import Checkpoint
    from curconvert.factorization.types import FactorTask
    from curconvert.linalg.statistics import InputStatistics
    from curconvert.methods.core.context import Context, Measured

SIZES: Mapping[str, str] = {
    "rank": "--rank",
    "density": "--density",
    "keep": "--keep",
    "target_parameters": "--target-params",
    "target_bytes": "--target-bytes",
    "max_kl": "--max-kl",
}
"""Options that say a size, and their flags: a method takes one of some of them."""


def option(flag: str, default: Any = None) -> Any:
    """Return a dataclass field that is an option of the command line."""
    return field(default=default, metadata={"flag": flag})


@dataclass(frozen=True)
class Needs:
    """What a method has to know of the original model before the first block is compressed.

    Attributes:
        fisher_rows: Second moments of the gradient at each row of the weights.
        curves: What each size of each module costs, which takes all gradients.
        statistics: Statistics of every target's input; otherwise they are collected block by block.
        resident: The whole model in memory, to learn on.
    """

    fisher_rows: bool = False
    curves: bool = False
    statistics: bool = False
    resident: bool = False

    def __or__(self, other: Needs) -> Needs:
        """Return what both together need."""
        return Needs(**{part.name: getattr(self, part.name) or getattr(other, part.name) for part in fields(self)})

    @property
    def gradients(self) -> bool:
        """Whether a pass goes back through the original."""
        return self.fisher_rows or self.curves


@dataclass(frozen=True)
class Method(ABC):
    """A method with its own options; the fields of a subclass are what means something to it.

    Attributes:
        name: As `--method` spells it.
        stores: What is stored of a matrix, for the table in the documentation.
        summary: What it does, one sentence, for the same table.
        sizes: Options of which one says the size; empty where nothing gets smaller.
        default_size: The size where none is given.
        defaults: Settings whose default is another than `Settings`' own.
        recorded: What the manifest calls the method's storage.
        needs: What it has to know of the original.
        sizes_whole: Whether the size is one of the whole model, and each matrix's follows from it.
        reads_evidence: Whether its tasks take all statistics from what was measured before.
    """

    name: ClassVar[str]
    stores: ClassVar[str]
    summary: ClassVar[str]
    sizes: ClassVar[tuple[str, ...]] = ()
    default_size: ClassVar[Mapping[str, float]] = {}
    defaults: ClassVar[Mapping[str, Any]] = {}
    recorded: ClassVar[Mapping[str, str]] = {}
    needs: ClassVar[Needs] = Needs()
    sizes_whole: ClassVar[bool] = False
    reads_evidence: ClassVar[bool] = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the method with its own options, after checking that they say one size.

        Args:
            values: The options that were given; those of other methods are refused.

        Raises:
            InputError: No size or several, or one that the method does not take.
        """
        given = [size for size in SIZES if size in values]
        if not given and cls.default_size:
            return cls(**{**values, **cls.default_size})
        if cls.sizes and (len(given) != 1 or given[0] not in cls.sizes):
            found = ", ".join(SIZES[size] for size in given) or "none"
            expected = ", ".join(SIZES[size] for size in cls.sizes)
            raise InputError(f"--method {cls.name} takes one size of {expected}; found {found}")
        if given and not cls.sizes:
            raise InputError(f"{SIZES[given[0]]}: --method {cls.name} takes no size")
        return cls(**values)

    @property
    def full_metric(self) -> bool:
        """Whether matrices are approximated for the outputs, in the metric of the full Gram matrix.

        Only then a bias makes up for the mean of what is lost. The other methods stay what their papers define.
        """
        return True

    @property
    def compares_inputs(self) -> bool:
        """Whether factors can make up for a share of what compressed blocks before theirs have lost.

        With `sequential`, where matrices are factorized one by one in the full metric.
        """
        return False

    @property
    def searches(self) -> bool:
        """Whether the size is searched for, by compressing in memory."""
        return False

    @property
    def writes_components(self) -> bool:
        """Whether the artifact holds what `resize` needs."""
        return False

    @property
    def learning_steps(self) -> int:
        """Steps of learning."""
        return 0

    def check(self, settings: Settings) -> None:  # noqa: B027 - most methods have nothing to refuse
        """Refuse settings that the method cannot work with; raises InputError."""

    def record(self) -> dict[str, Any]:
        """Return the method and its own options as the manifest has them."""
        return {"method": self.name, **self.recorded, **asdict(self)}

    @abstractmethod
    def plan(self, checkpoint: Checkpoint, settings: Settings, layers: tuple[int, ...] | None = None) -> Plan:
        """Plan a conversion from shapes alone.

        Args:
            checkpoint: The opened model.
            settings: Of the conversion.
            layers: The chosen layers, once known.

        Raises:
            InputError: The size cannot be had.
        """

    def decide(self, context: Context, measured: Measured) -> Plan:
        """Decide form and rank of every matrix, once the original was measured.

        Raises:
            InputError: The size cannot be had.
        """
        return self.plan(context.checkpoint, context.settings, measured.layers(context))

    @abstractmethod
    def tasks(
        self, plans: Sequence[MatrixPlan], statistics: Mapping[str, InputStatistics], context: Context
    ) -> Iterator[FactorTask]:
        """Read what the factorization of some of a block's matrices needs.

        Args:
            plans: Of matrices that get smaller.
            statistics: Of each one's input, by its name; empty where `reads_evidence`.
            context: The conversion.

        Yields:
            Tasks that give factors by weight name; the longest first, so that the last ones to start are short.

        Raises:
            InputError: A weight, bias or statistics would make every later number meaningless: not finite, or not in
                the deployed dtype.
        """

    @classmethod
    def for_size(cls, checkpoint: Checkpoint, target: int) -> dict[str, Any]:
        """Return the options that give the whole model a number of parameters.

        Args:
            checkpoint: The opened model.
            target: Parameters of the whole model.

        Raises:
            InputError: The method cannot make the model so small.
        """
        return {"target_parameters": target}

    @classmethod
    def for_share(cls, checkpoint: Checkpoint, keep: float) -> dict[str, Any]:
        """Return the options that keep a share of the whole model's parameters; see `for_size`."""
        from curconvert.checkpoint.linears import total_parameters

        return cls.for_size(checkpoint, int(keep * total_parameters(checkpoint)))

    def cost(self, matrix: MatrixPlan, tokens: int) -> Cost:
        """Return what the factorization of one matrix computes and holds.

        Args:
            matrix: With its rank.
            tokens: Of the calibration text.
        """
        return cost_of(matrix, tokens)
