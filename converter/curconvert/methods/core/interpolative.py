"""Base of methods that store rows, and coefficients for the other outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from curconvert.base.roles import Role
from curconvert.methods.core.matrixwise import Matrixwise
from curconvert.methods.core.sized import Sized


@dataclass(frozen=True)
class Interpolative(Matrixwise, Sized):
    """Stores an interpolative decomposition; methods differ in the matrix whose rows it stores."""

    stores: ClassVar[str] = "r rows and the coefficients of the other rows: r(m + n − r)"

    @property
    def compares_inputs(self) -> bool:
        """See `Method.compares_inputs`."""
        return True

    def forms(self, role: Role) -> tuple[str, ...]:
        """Return the form `interpolative`."""
        return ("interpolative",)
