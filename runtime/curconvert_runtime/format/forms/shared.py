"""Two matrices with one factor in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shared:
    """What one of two matrices with a common factor adds to its form; the form says which factor that is.

    Attributes:
        matrices: Both weight names; the common factor is stored under the first one's.
        rows: p, how many of its rows are rows of this matrix.
    """

    matrices: tuple[str, str]
    rows: int

    @classmethod
    def of(cls, matrix: Mapping[str, Any]) -> Shared | None:
        """Read it from a row of the manifest; None where all factors are the matrix's own."""
        found = matrix.get("shared")
        return None if found is None else cls((found["matrices"][0], found["matrices"][1]), found["rows"])

    def to_json(self) -> dict[str, Any]:
        """Return what `of` reads."""
        return {"matrices": list(self.matrices), "rows": self.rows}
