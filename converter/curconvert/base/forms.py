"""States what a conversion must know about each form; `curconvert_runtime.format.forms` defines how it is stored."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from curconvert_runtime.format.forms import form_of
from curconvert_runtime.format.forms.form import Form, Matrix, Shape, Tensors, wide

Basis = Literal["rows", "subspace"]
"""Origin of the rows of an interpolative R or of a sparse weight: rows of W, or of its best rank-r approximation."""

FLOAT_LINK_RANK = 128
"""Largest rank at which U is not quantized. Such a U is small, and has the largest entries of the three factors."""

MIN_SAVING = 0.05  # a matrix that would shrink by less stays dense: extra products would cost more than they save


@dataclass(frozen=True, eq=False)
class Traits:
    """What a conversion must know about a form. The defaults fit a product of factors with a corrected bias.

    Attributes:
        form: The runtime's description of the form.
        linking: Suffix of the factor that healing trains; None if it trains none.
        corrects_bias: Whether the layer's bias compensates for the mean output error. Otherwise the bias stays
            unchanged, apart from entries of dropped outputs.
        nested: Whether `resize` can cut the form to a smaller rank, by dropping components.
        has_basis: Whether the manifest states a `Basis` for its rows.
    """

    form: Form
    linking: str | None = None
    corrects_bias: bool = True
    nested: bool = False
    has_basis: bool = False

    def break_even_rank(self, shape: Shape) -> int:
        """Return the largest rank at which the form stores at most as many numbers as the matrix has."""
        ranks = range(1, self.form.largest_rank(shape) + 1)
        return bisect.bisect_right(ranks, math.prod(shape), key=lambda rank: self.form.parameters(shape, rank))

    def slices(self, basis: str | None) -> Mapping[str, tuple[int, str]]:
        """Return the factors that are rows or columns of the matrix, given its basis; see `Form.slices`."""
        return {} if self.has_basis and basis != "rows" else self.form.slices

    def quantized(self, rank: int) -> tuple[str, ...]:
        """Return the suffixes of factors that `--quantize` rounds, in the order in which they multiply an input."""
        return tuple(self.form.factors)

    def seen(self, gram: Matrix, tensors: Tensors) -> Matrix | None:
        """Return the Gram matrix of the first factor's inputs, from that of the original inputs; None if unknown."""
        return gram

    def thin(self, tensors: Tensors) -> tuple[Matrix, Matrix] | None:
        """Return two factors, (m, r) and (r, n), whose product is the matrix; None for a part of a matrix."""
        return None

    def link_outputs(self, tensors: Tensors) -> NDArray[Any]:
        """Return the matrix (m, k) that multiplies the linking factor's outputs, or their places in the output, (k,).

        Raises:
            ValueError: The form has no linking factor.
        """
        raise ValueError(f"form {self.form.name!r} has no linking factor")


class _CUR(Traits):
    def quantized(self, rank: int) -> tuple[str, ...]:
        """Return all factors except a small U."""
        return tuple(suffix for suffix in self.form.factors if suffix != "U" or rank > FLOAT_LINK_RANK)

    def thin(self, tensors: Tensors) -> tuple[Matrix, Matrix]:
        """Return C and U·R."""
        found = wide(tensors)
        return found["C"], found["U"] @ found["R"]

    def link_outputs(self, tensors: Tensors) -> NDArray[Any]:
        """Return C."""
        return wide(tensors)["C"]


class _Interpolative(Traits):
    def break_even_rank(self, shape: Shape) -> int:
        """Return min(m, n): r(m + n − r) ≤ mn for all smaller r."""
        return min(shape)

    def thin(self, tensors: Tensors) -> tuple[Matrix, Matrix]:
        """Return [I; T][order] and R."""
        found = wide(tensors)
        return np.concatenate([np.eye(len(found["R"])), found["T"]])[tensors["order"]], found["R"]

    def link_outputs(self, tensors: Tensors) -> NDArray[Any]:
        """Return the outputs that T computes, in the order of T's rows."""
        return np.argsort(tensors["order"])[-len(tensors["T"]) :]


class _TwoFactor(Traits):
    def thin(self, tensors: Tensors) -> tuple[Matrix, Matrix]:
        """Return A and B."""
        found = wide(tensors)
        return found["A"], found["B"]


class _ModularColumns(Traits):
    def seen(self, gram: Matrix, tensors: Tensors) -> Matrix:
        """Return the Gram matrix of the kept inputs."""
        kept = tensors["cols"]
        return np.asarray(gram[np.ix_(kept, kept)])


class _SparseColumns(Traits):
    def seen(self, gram: Matrix, tensors: Tensors) -> None:
        """Return None: a smaller o_proj gets new combinations of the values, whose Gram matrix is unknown."""


_TRAITS = {
    traits.form.name: traits
    for traits in (
        Traits(form_of("dense"), corrects_bias=False),
        _CUR(form_of("cur"), linking="U"),
        _Interpolative(form_of("interpolative"), linking="T", nested=True, has_basis=True),
        _TwoFactor(form_of("two_factor")),
        Traits(form_of("modular_rows"), corrects_bias=False),
        _ModularColumns(form_of("modular_columns")),
        Traits(form_of("sparse_rows"), corrects_bias=False, has_basis=True),
        _SparseColumns(form_of("sparse_columns"), corrects_bias=False),
    )
}


def traits_of(form: str) -> Traits:
    """Return the traits of a form; the defaults for a form that is not listed.

    Raises:
        ValueError: There is no such form.
    """
    entry = form_of(form)
    return _TRAITS.get(form) or Traits(entry)


def rank_for_density(form: str, shape: Shape, density: float) -> int:
    """Return the largest rank at which a form stores at most this share of the matrix's numbers; 0 if none fits."""
    entry, budget = form_of(form), density * math.prod(shape)
    ranks = range(1, traits_of(form).break_even_rank(shape) + 1)
    return bisect.bisect_right(ranks, budget, key=lambda rank: entry.parameters(shape, rank))
