"""Defines `Form`: one way to store a matrix of shape (m, n) with rank r."""

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
"""Suffix of a wrong index vector and the reason, or None."""

INDICES = ("rows", "cols", "order")
"""Suffixes of the int32 index vectors."""
PROVENANCE = (".rows", ".cols")
"""Endings of the tensors that say where factors come from. The product does not need them, so no graph reads them."""


def factor_name(weight: str, suffix: str) -> str:
    """Return the name of a stored tensor: `….q_proj.weight` and `C` give `….q_proj.C`."""
    return f"{weight.removesuffix('weight')}{suffix}"


def is_index(name: str) -> bool:
    """Tell whether a stored tensor is an index vector, by its name."""
    return name.rpartition(".")[2] in INDICES


@dataclass(frozen=True)
class Shared:
    """What a matrix states if it has a common factor with another one; `Form.common` names the factor.

    Attributes:
        matrices: Both weight names. The common factor is stored under the first one.
        rows: p, the number of rows of the common factor that are rows of this matrix.
    """

    matrices: tuple[str, str]
    rows: int

    @classmethod
    def of(cls, matrix: Mapping[str, Any]) -> Shared | None:
        """Return what a matrix of the manifest shares; None if it shares no factor."""
        found = matrix.get("shared")
        return None if found is None else cls((found["matrices"][0], found["matrices"][1]), found["rows"])


@dataclass(frozen=True, eq=False)
class Form(ABC):
    """One way to store a matrix, in (out_features, in_features) layout.

    Axes have letters: m, n, r; p, the number of rows of R that are rows of the matrix (r, unless two matrices share R);
    q = m − p. The argument `shared` is only set for a matrix that shares the `common` factor with another one.

    Attributes:
        name: Name in the manifest.
        factors: Axes of the float tensors by suffix, in the order in which they multiply an input.
        indices: Axis of the int32 index vectors by suffix.
        common: Suffix of the factor that two matrices can share; None if they cannot.
        kept: Suffix of the index vector of kept rows or columns; None if the form drops none.
        joint: Whether all linears of a module must be stored in matching forms.
        cuts_outputs: Whether product and bias have only the kept outputs.
        slices: Axis and index vector of each factor that equals rows (axis 0) or columns (axis 1) of the matrix bit
            for bit. If the manifest names a basis, this is true only for the basis `rows`.
        is_compressed: Whether the form compresses; `dense` does not and has no rank.
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
        """Return the matrix that the tensors store, (m, n) float64; dropped rows or columns are zero."""

    def shapes(self, shape: Shape, rank: int, shared: Shared | None = None) -> dict[str, Shape]:
        """Return the shape of each factor by suffix."""
        sizes = _sizes(shape, rank, shared)
        return {suffix: (sizes[axes[0]], sizes[axes[1]]) for suffix, axes in self.factors.items()}

    def index_lengths(self, shape: Shape, rank: int, shared: Shared | None = None) -> dict[str, int]:
        """Return the length of each index vector by suffix. They do not count as parameters."""
        sizes = _sizes(shape, rank, shared)
        return {suffix: sizes[axis] for suffix, axis in self.indices.items()}

    def tensor_names(self, name: str, shared: Shared | None = None) -> dict[str, str]:
        """Return the names of all tensors that store a weight, by suffix; a common factor has its owner's name."""
        owners = {self.common: shared.matrices[0]} if shared else {}
        return {suffix: factor_name(owners.get(suffix, name), suffix) for suffix in (*self.factors, *self.indices)}

    def largest_rank(self, shape: Shape, shared: Shared | None = None) -> int:
        """Return the largest rank that can be stored."""
        return min(shape)

    def fits(self, shape: Shape, rank: int, shared: Shared | None = None) -> bool:
        """Tell whether a matrix can have this rank."""
        return not self.is_compressed or rank <= self.largest_rank(shape, shared)

    def parameters(self, shape: Shape, rank: int, shared: Shared | None = None, name: str | None = None) -> int:
        """Return the number of stored numbers of all factors; a common factor counts only for its owner."""
        shapes = self.shapes(shape, rank, shared)
        if shared and self.common and name != shared.matrices[0]:
            del shapes[self.common]
        return sum(rows * columns for rows, columns in shapes.values())

    def index_fault(self, shape: Shape, rank: int, indices: Tensors, shared: Shared | None = None) -> Fault:
        """Return the first fault in a matrix's index vectors, or None; the caller has checked their lengths."""
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
    """Return a fault if indices repeat or are outside 0 … size − 1, otherwise None."""
    if values.min() < 0 or values.max() >= size or len(np.unique(values)) != len(values):
        return suffix, f"must hold distinct indices below {size}"
    return None
