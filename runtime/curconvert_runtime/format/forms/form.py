"""`Form`, what every entry of the registry says about one way to store a matrix of shape (m, n) and rank r."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Shape: TypeAlias = tuple[int, int]
Tensors: TypeAlias = Mapping[str, NDArray[Any]]
"""Stored tensors by suffix."""
Matrix: TypeAlias = NDArray[np.float64]
Fault: TypeAlias = tuple[str, str] | None
"""An index vector's suffix, and what is wrong with it."""

INDICES = ("rows", "cols", "order")
"""Suffixes of the int32 vectors."""
PROVENANCE = (".rows", ".cols")
"""Endings of the tensors that say where factors come from; the product does not need them, so no graph reads them."""


def factor_name(weight: str, suffix: str) -> str:
    """Name of a stored tensor: `….q_proj.weight` and `C` give `….q_proj.C`."""
    return f"{weight.removesuffix('weight')}{suffix}"


def is_index(name: str) -> bool:
    """Tell whether a stored tensor's name is that of an index vector."""
    return name.rpartition(".")[2] in INDICES


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


@dataclass(frozen=True, eq=False)
class Form(ABC):
    """One way to store a matrix, in (out_features, in_features) layout.

    Axes have letters: m, n and r; p, how many rows of R are rows of the matrix (r, unless R is common to two matrices);
    q = m − p. Where a method takes `shared`, that is set only for a matrix of a form with a `common` factor.

    Attributes:
        name: What the manifest calls it.
        factors: Axes of the float tensors by suffix, in the order in which an input meets them.
        indices: Axis of the int32 index vectors by suffix.
        common: The factor that two matrices may have in common; None where there is none.
        kept: The index vector of the rows or columns that a part of the matrix keeps; None where all are there.
        joint: Whether it is one part of a module, whose linears are stored so together or not at all.
        cuts_outputs: Whether the product has the kept outputs only, and so has the bias.
        slices: The factors that are rows (axis 0) or columns (axis 1) of the matrix, bit for bit: axis and index
            vector of each. Where the manifest names a basis, that holds of the basis `rows` only.
        is_compressed: Whether anything is made of the matrix at all; otherwise it has no rank.
    """

    name: str
    factors: Mapping[str, str]
    indices: Mapping[str, str] = field(default_factory=dict)
    common: str | None = None
    kept: str | None = None
    joint: bool = False
    cuts_outputs: bool = False
    slices: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    is_compressed: bool = True

    @abstractmethod
    def multiply(self, shape: Shape, tensors: Tensors) -> Matrix:
        """Multiply the factors out, or put kept rows or columns where they were: (m, n) float64."""

    def shapes(self, shape: Shape, rank: int, shared: Shared | None = None) -> dict[str, Shape]:
        """Return the shape of each factor by suffix."""
        sizes = _sizes(shape, rank, shared)
        return {suffix: (sizes[axes[0]], sizes[axes[1]]) for suffix, axes in self.factors.items()}

    def index_lengths(self, shape: Shape, rank: int, shared: Shared | None = None) -> dict[str, int]:
        """Return the length of each index vector by suffix; they are not parameters."""
        sizes = _sizes(shape, rank, shared)
        return {suffix: sizes[axis] for suffix, axis in self.indices.items()}

    def tensor_names(self, name: str, shared: Shared | None = None) -> dict[str, str]:
        """Return the names of all tensors that a weight is stored as, by suffix; a common factor has its owner's."""
        owners = {self.common: shared.matrices[0]} if shared else {}
        return {suffix: factor_name(owners.get(suffix, name), suffix) for suffix in (*self.factors, *self.indices)}

    def largest_rank(self, shape: Shape, shared: Shared | None = None) -> int:
        """Return the largest rank that can be stored."""
        return min(shape)

    def fits(self, shape: Shape, rank: int, shared: Shared | None = None) -> bool:
        """Tell whether a matrix can have this rank."""
        return not self.is_compressed or rank <= self.largest_rank(shape, shared)

    def parameters(self, shape: Shape, rank: int, shared: Shared | None = None, name: str | None = None) -> int:
        """Count the stored numbers of all factors of a weight; a common one counts for its owner."""
        shapes = self.shapes(shape, rank, shared)
        if shared and self.common and name != shared.matrices[0]:
            del shapes[self.common]
        return sum(rows * columns for rows, columns in shapes.values())

    def index_fault(self, shape: Shape, rank: int, indices: Tensors, shared: Shared | None = None) -> Fault:
        """Look for what is wrong with a matrix's index vectors, which have the lengths of `index_lengths`."""
        sizes = {suffix: shape[1] if suffix == "cols" else shape[0] for suffix in indices}
        faults = (not_distinct(suffix, values, sizes[suffix]) for suffix, values in indices.items())
        return next(filter(None, faults), None)


def _sizes(shape: Shape, rank: int, shared: Shared | None) -> dict[str, int]:
    own = shared.rows if shared else rank or 0  # a dense matrix has no rank
    return {"m": shape[0], "n": shape[1], "r": rank, "p": own, "q": shape[0] - own}


def wide(tensors: Tensors) -> dict[str, Matrix]:
    """Return the factors in float64, without index vectors."""
    return {suffix: np.asarray(value, np.float64) for suffix, value in tensors.items() if suffix not in INDICES}


def not_distinct(suffix: str, values: NDArray[Any], size: int) -> Fault:
    """Return the fault of indices that are not distinct, or not below a size."""
    if values.min() < 0 or values.max() >= size or len(np.unique(values)) != len(values):
        return suffix, f"must hold distinct indices below {size}"
    return None
