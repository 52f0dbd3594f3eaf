"""The interface of a compression method: its options, its needs, its plans and its tasks."""

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
"""Size options and their flags; each method supports some of them, and takes one at a time."""


def option(flag: str, default: Any = None) -> Any:
    """Return a dataclass field for an option of the command line."""
    return field(default=default, metadata={"flag": flag})


@dataclass(frozen=True)
class Needs:
    """Says what a method needs from the original model before the first block is compressed.

    Attributes:
        fisher_rows: Fisher information of each row of the weights.
        curves: The cost curve of each module, which needs all gradients.
        statistics: Statistics of every target's input; otherwise they are collected block by block.
        resident: The whole model in memory, for learning.
    """

    fisher_rows: bool = False
    curves: bool = False
    statistics: bool = False
    resident: bool = False

    def __or__(self, other: Needs) -> Needs:
        """Return the needs of both together."""
        return Needs(**{part.name: getattr(self, part.name) or getattr(other, part.name) for part in fields(self)})

    @property
    def gradients(self) -> bool:
        """Whether a backward pass through the original is needed."""
        return self.fisher_rows or self.curves


@dataclass(frozen=True)
class Method(ABC):
    """Defines a compression method; the dataclass fields of a subclass are its options.

    Attributes:
        name: The value of `--method`.
        stores: What is stored of a matrix, for the table in the documentation.
        summary: What the method does, one sentence, for the same table.
        sizes: The size options that it supports; empty for a method without a size.
        default_size: The size used if none is given.
        defaults: Settings with a default that differs from `Settings`.
        recorded: The manifest's entries for the method's storage.
        needs: What the method needs from the original.
        sizes_whole: Whether the size is one of the whole model, from which the method derives each matrix's size.
        reads_evidence: Whether its tasks read all statistics from the evidence, not from their argument.
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
        """Return the method with given options and exactly one size.

        Args:
            values: The given options of this method.

        Raises:
            InputError: There is no size, there are several, or the method does not support it.
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
        """Whether the method minimizes output errors, in the metric of the full Gram matrix.

        Only such methods correct the bias for the mean error. Other methods follow their papers' definitions.
        """
        return True

    @property
    def compares_inputs(self) -> bool:
        """Whether factors can correct a share of the errors of earlier compressed blocks (with `sequential`).

        Only methods that factorize each matrix on its own, in the full metric, can do this.
        """
        return False

    @property
    def searches(self) -> bool:
        """Whether the method searches for the size, by trial compressions in memory."""
        return False

    @property
    def writes_components(self) -> bool:
        """Whether the artifact gets the components that `resize` needs."""
        return False

    @property
    def learning_steps(self) -> int:
        """Number of training steps; 0 for a method that does not learn."""
        return 0

    def check(self, settings: Settings) -> None:  # noqa: B027 - most methods accept all settings
        """Reject settings that the method does not support; raises InputError."""

    def record(self) -> dict[str, Any]:
        """Return the method and its own options as the manifest records them."""
        return {"method": self.name, **self.recorded, **asdict(self)}

    @abstractmethod
    def plan(self, checkpoint: Checkpoint, settings: Settings, layers: tuple[int, ...] | None = None) -> Plan:
        """Plan a conversion from shapes alone.

        Args:
            checkpoint: The opened model.
            settings: Settings of the conversion.
            layers: The chosen layers, once known.

        Raises:
            InputError: The size is not possible.
        """

    def decide(self, context: Context, measured: Measured) -> Plan:
        """Return the final plan, with form and rank of every matrix, after the original is measured.

        Raises:
            InputError: The size is not possible.
        """
        return self.plan(context.checkpoint, context.settings, measured.layers(context))

    @abstractmethod
    def tasks(
        self, plans: Sequence[MatrixPlan], statistics: Mapping[str, InputStatistics], context: Context
    ) -> Iterator[FactorTask]:
        """Read some of a block's matrices, and yield the tasks that factorize them.

        Args:
            plans: Plans of the matrices to compress.
            statistics: Statistics of each one's input, by its name; may be empty if `reads_evidence`.
            context: The conversion.

        Yields:
            Tasks that return factors by weight name; the longest first, so that the last ones to start are short.

        Raises:
            InputError: A weight or a bias does not fit the deployed dtype, or statistics are not finite.
        """

    @classmethod
    def for_size(cls, checkpoint: Checkpoint, target: int) -> dict[str, Any]:
        """Return the options that give the whole model a number of parameters.

        Args:
            checkpoint: The opened model.
            target: Parameters of the whole model.

        Raises:
            InputError: The method cannot make the model that small.
        """
        return {"target_parameters": target}

    @classmethod
    def for_share(cls, checkpoint: Checkpoint, keep: float) -> dict[str, Any]:
        """Return the options that keep a share of the whole model's parameters; see `for_size`."""
        from curconvert.checkpoint.linears import total_parameters

        return cls.for_size(checkpoint, int(keep * total_parameters(checkpoint)))

    def cost(self, matrix: MatrixPlan, tokens: int) -> Cost:
        """Return the flops and memory of factorizing one matrix.

        Args:
            matrix: The matrix with its rank.
            tokens: Number of calibration tokens.
        """
        return cost_of(matrix, tokens)
