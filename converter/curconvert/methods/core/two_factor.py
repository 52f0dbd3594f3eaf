"""Base of methods that store two thin factors."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from curconvert.base.roles import Role
from curconvert.methods.core.matrixwise import Matrixwise
from curconvert.methods.core.sized import Sized
from curconvert.options.settings import Settings

if TYPE_CHECKING:
    from curconvert.base.types import Matrix, Vector
    from curconvert.factorization.types import Factorization, Problem


@dataclass(frozen=True)
class TwoFactor(Matrixwise, Sized):
    """Stores a low-rank approximation A·B; methods differ in the norm that it minimizes."""

    stores: ClassVar[str] = "two factors: r(m + n)"

    @property
    def full_metric(self) -> bool:
        """See `Method.full_metric`."""
        return False

    def forms(self, role: Role) -> tuple[str, ...]:
        """Return the form `two_factor`."""
        return ("two_factor",)

    def factorize(self, problem: Problem, settings: Settings, fisher_rows: Vector | None) -> Factorization:
        """Return the factors of one matrix; see `Matrixwise.factorize`."""
        from curconvert.factorization.two_factor import factorize_two_factor

        return factorize_two_factor(problem, lambda wanted: self.factors(wanted, problem, settings, fisher_rows))

    @abstractmethod
    def factors(
        self, wanted: Matrix, problem: Problem, settings: Settings, fisher_rows: Vector | None
    ) -> tuple[Matrix, Matrix]:
        """Return A, (m, r), and B, (r, n), whose product approximates a matrix.

        Args:
            wanted: The matrix, (m, n).
            problem: The rank, and the statistics of the input.
            settings: The ridge.
            fisher_rows: Fisher information of each row, (m,); None unless the method needs it.
        """
