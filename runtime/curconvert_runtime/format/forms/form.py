"""`Form`, what every entry of the registry says about one way to store a matrix of shape (m, n) and rank r."""

from __future__ import annotations

import bisect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from curconvert_runtime.format.forms.names import INDICES, factor_name
from curconvert_runtime.format.forms.shared import Shared

Shape: TypeAlias = tuple[int, int]
Tensors: TypeAlias = Mapping[str, NDArray[Any]]
"""Stored tensors by suffix."""
Matrix: TypeAlias = NDArray[np.float64]
Fault: TypeAlias = tuple[str, str] | None
"""An index vector's suffix, and what is wrong with it."""


class Form(ABC):
    """One way to store a matrix. An entry states what differs from the defaults here.

    Shapes are in (out_features, in_features) layout. Where a method takes `shared`, that is set only for a matrix of a
    form with a `common` factor.

    Attributes:
        name: What the manifest calls it.
        factors: Suffixes of the float tensors, in the order in which an input meets them.
        read: Suffixes of the index vectors that the product reads; the others say where factors come from.
        linking: The factor that healing trains; None where it trains none.
        common: The factor that two matrices may have in common; None where there is none.
        bias: What becomes of the layer's bias: it is kept, only the entries of kept outputs are, or it is corrected to
            make up for the mean of what the matrix loses.
        kept: The index vector of the rows or columns that a part of the matrix keeps; None where all are there.
        joint: Whether it is one part of a module, whose linears are stored so together or not at all.
        nested: Whether a smaller rank is made of a larger one's components; `resize` makes such ranks.
        has_basis: Whether the manifest says what its rows are: rows of the matrix, or of its best approximation.
        slices: The factors that are rows (axis 0) or columns (axis 1) of the matrix, bit for bit: axis and index
            vector of each. Where the form has a basis, that holds of the basis `rows` only.
        is_compressed: Whether anything is made of the matrix at all.
    """

    name: ClassVar[str]
    factors: ClassVar[tuple[str, ...]]
    read: ClassVar[tuple[str, ...]] = ()
    linking: ClassVar[str | None] = None
    common: ClassVar[str | None] = None
    bias: ClassVar[Literal["kept", "cut", "corrected"]] = "corrected"
    kept: ClassVar[str | None] = None
    joint: ClassVar[bool] = False
    nested: ClassVar[bool] = False
    has_basis: ClassVar[bool] = False
    slices: ClassVar[Mapping[str, tuple[int, str]]] = MappingProxyType({})
    is_compressed: ClassVar[bool] = True

    @property
    def cuts_outputs(self) -> bool:
        """Whether the product has the kept outputs only, and so has the bias."""
        return self.bias == "cut"

    @property
    def crossing(self) -> tuple[tuple[str, str], tuple[str, str]] | None:
        """What are columns and what are rows of the matrix, each with its index vector; None unless there are both."""
        columns, rows = (
            [(suffix, index) for suffix, (axis, index) in self.slices.items() if axis == own] for own in (1, 0)
        )
        return (columns[0], rows[0]) if columns and rows else None

    @abstractmethod
    def shapes(self, shape: Shape, rank: int, shared: Shared | None = None) -> dict[str, Shape]:
        """Return the shape of each factor, by suffix, in the order in which they are stored."""

    @abstractmethod
    def multiply(self, shape: Shape, tensors: Tensors) -> Matrix:
        """Multiply the factors out, or put kept rows or columns where they were: (m, n) float64."""

    def index_lengths(self, shape: Shape, rank: int, shared: Shared | None = None) -> dict[str, int]:
        """Return the lengths of the stored int32 index vectors by suffix; they are not parameters."""
        return {}

    def tensor_names(self, name: str, shape: Shape, rank: int, shared: Shared | None = None) -> dict[str, str]:
        """Return the names of all stored tensors by suffix; a common factor has its owner's name.

        Args:
            name: The weight's.
            shape: (m, n).
            rank: r.
            shared: With which matrix.
        """
        suffixes = [*self.shapes(shape, rank, shared), *self.index_lengths(shape, rank, shared)]
        owners = {self.common: shared.matrices[0]} if shared else {}
        return {suffix: factor_name(owners.get(suffix, name), suffix) for suffix in suffixes}

    def largest_rank(self, shape: Shape, shared: Shared | None = None) -> int:
        """Return the largest rank that can be stored."""
        return min(shape)

    def fits(self, shape: Shape, rank: int, shared: Shared | None = None) -> bool:
        """Tell whether a matrix can have this rank."""
        return rank <= self.largest_rank(shape, shared)

    def parameters(self, shape: Shape, rank: int, shared: Shared | None = None, name: str | None = None) -> int:
        """Count the stored numbers of all factors; a common one counts for its owner.

        Args:
            shape: (m, n).
            rank: r.
            shared: With which matrix.
            name: The weight's; matters only then.
        """
        shapes = self.shapes(shape, rank, shared)
        if shared and self.common and name != shared.matrices[0]:
            del shapes[self.common]
        return sum(rows * columns for rows, columns in shapes.values())

    def break_even_rank(self, shape: Shape) -> int:
        """Return the largest rank at which no more numbers are stored than the matrix has."""
        ranks = range(1, self.largest_rank(shape) + 1)
        return bisect.bisect_right(ranks, math.prod(shape), key=lambda rank: self.parameters(shape, rank))

    def index_fault(self, shape: Shape, rank: int, indices: Tensors, shared: Shared | None = None) -> Fault:
        """Look for what is wrong with a matrix's index vectors, which have the lengths of `index_lengths`."""
        sizes = {suffix: shape[1] if suffix == "cols" else shape[0] for suffix in indices}
        return first_fault(not_distinct(suffix, values, sizes[suffix]) for suffix, values in indices.items())

    def thin(self, tensors: Tensors) -> tuple[Matrix, Matrix] | None:
        """Return two factors, (m, r) and (r, n), of which the matrix is the product; None for a part of a matrix."""
        return None

    def link_outputs(self, tensors: Tensors) -> NDArray[Any]:
        """Return what the linking factor's outputs become: what multiplies them, (m, k), or their places, (k,)."""
        raise NotImplementedError(f"form {self.name} has no linking factor")

    def slices_of(self, basis: str | None) -> Mapping[str, tuple[int, str]]:
        """Return the factors that are slices of the matrix where its basis is this one, see `slices`."""
        return {} if self.has_basis and basis != "rows" else self.slices

    def quantised(self, rank: int) -> tuple[str, ...]:
        """Return the factors that are quantised where the artifact is, in the order in which an input meets them."""
        return self.factors

    def seen(self, gram: Matrix, tensors: Tensors) -> Matrix | None:
        """Return the Gram matrix of what the first factor multiplies, from the original input's; None if unknown."""
        return gram


def wide(tensors: Tensors) -> dict[str, Matrix]:
    """Return the factors in float64, without index vectors."""
    return {suffix: np.asarray(value, np.float64) for suffix, value in tensors.items() if suffix not in INDICES}


def first_fault(faults: Iterable[Fault]) -> Fault:
    """Return the first that is not None."""
    return next((fault for fault in faults if fault is not None), None)


def not_distinct(suffix: str, values: NDArray[Any], size: int) -> Fault:
    """Return the fault of indices that are not distinct, or not below a size."""
    if values.min() < 0 or values.max() >= size or len(np.unique(values)) != len(values):
        return suffix, f"must hold distinct indices below {size}"
    return None


def not_ascending(suffix: str, values: NDArray[Any]) -> Fault:
    """Return the fault of indices that are not ascending."""
    return (suffix, "is not ascending") if (np.diff(values) < 0).any() else None
