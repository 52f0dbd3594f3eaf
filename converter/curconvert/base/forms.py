"""What a conversion asks of a form; `curconvert_runtime.format.forms` says how each is stored and multiplied."""

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
"""What the rows of an interpolative R, or of a sparse weight, are: rows of W, or of its best rank-r approximation."""

FLOAT_LINK_RANK = 128
"""Largest rank at which U stays float: it is small then, and has the largest entries of the three."""

MIN_SAVING = 0.05  # a matrix that would shrink by less stays dense: three products cost more than they save


@dataclass(frozen=True, eq=False)
class Traits:
    """What a conversion asks of a form. The defaults are those of a product that a corrected bias follows.

    Attributes:
        form: The runtime's entry.
        linking: The factor that healing trains; None where it trains none.
        corrects_bias: Whether the layer's bias makes up for the mean of what the matrix loses; otherwise it is kept, or
            its entries of kept outputs are.
        nested: Whether a smaller rank is made of a larger one's components; `resize` makes such ranks.
        has_basis: Whether the manifest says what its rows are, a `Basis`.
    """

    form: Form
    linking: str | None = None
    corrects_bias: bool = True
    nested: bool = False
    has_basis: bool = False

    def break_even_rank(self, shape: Shape) -> int:
        """Return the largest rank at which no more numbers are stored than the matrix has."""
        ranks = range(1, self.form.largest_rank(shape) + 1)
        return bisect.bisect_right(ranks, math.prod(shape), key=lambda rank: self.form.parameters(shape, rank))

    def slices(self, basis: str | None) -> Mapping[str, tuple[int, str]]:
        """Return the factors that are slices of the matrix where its basis is this one, see `Form.slices`."""
        return {} if self.has_basis and basis != "rows" else self.form.slices

    def quantized(self, rank: int) -> tuple[str, ...]:
        """Return the factors that are quantized where the artifact is, in the order in which an input meets them."""
        return tuple(self.form.factors)

    def seen(self, gram: Matrix, tensors: Tensors) -> Matrix | None:
        """Return the Gram matrix of what the first factor multiplies, from the original input's; None if unknown."""
        return gram

    def thin(self, tensors: Tensors) -> tuple[Matrix, Matrix] | None:
        """Return two factors, (m, r) and (r, n), of which the matrix is the product; None for a part of a matrix."""
        return None

    def link_outputs(self, tensors: Tensors) -> NDArray[Any]:
        """Return what the linking factor's outputs become: what multiplies them, (m, k), or their places, (k,).

        Raises:
            ValueError: The form has no linking factor.
        """
        raise ValueError(f"form {self.form.name!r} has no linking factor")


class _CUR(Traits):
    def quantized(self, rank: int) -> tuple[str, ...]:
        """All, but for a small U."""
        return tuple(suffix for suffix in self.form.factors if suffix != "U" or rank > FLOAT_LINK_RANK)

    def thin(self, tensors: Tensors) -> tuple[Matrix, Matrix]:
        """C and U·R."""
        found = wide(tensors)
        return found["C"], found["U"] @ found["R"]

    def link_outputs(self, tensors: Tensors) -> NDArray[Any]:
        """C."""
        return wide(tensors)["C"]


class _Interpolative(Traits):
    def break_even_rank(self, shape: Shape) -> int:
        """r(m + n − r) ≤ mn up to min(m, n)."""
        return min(shape)

    def thin(self, tensors: Tensors) -> tuple[Matrix, Matrix]:
        """[I; T][order] and R."""
        found = wide(tensors)
        return np.concatenate([np.eye(len(found["R"])), found["T"]])[tensors["order"]], found["R"]

    def link_outputs(self, tensors: Tensors) -> NDArray[Any]:
        """The outputs that are rows of T, in its order."""
        return np.argsort(tensors["order"])[-len(tensors["T"]) :]


class _TwoFactor(Traits):
    def thin(self, tensors: Tensors) -> tuple[Matrix, Matrix]:
        """A and B."""
        found = wide(tensors)
        return found["A"], found["B"]


class _ModularColumns(Traits):
    def seen(self, gram: Matrix, tensors: Tensors) -> Matrix:
        """That of the kept inputs."""
        kept = tensors["cols"]
        return np.asarray(gram[np.ix_(kept, kept)])


class _SparseColumns(Traits):
    def seen(self, gram: Matrix, tensors: Tensors) -> None:
        """Unknown: the inputs of a smaller o_proj are new combinations of the values."""


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
    """Return what a conversion asks of a form; the defaults where nothing else is said.

    Raises:
        ValueError: There is no such form.
    """
    entry = form_of(form)
    return _TRAITS.get(form) or Traits(entry)


def rank_for_density(form: str, shape: Shape, density: float) -> int:
    """Largest rank at which a form stores at most this share of the matrix's numbers; 0 where there is none."""
    entry, budget = form_of(form), density * math.prod(shape)
    ranks = range(1, traits_of(form).break_even_rank(shape) + 1)
    return bisect.bisect_right(ranks, budget, key=lambda rank: entry.parameters(shape, rank))
