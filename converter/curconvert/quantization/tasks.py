"""Quantising what a matrix is stored as, each factor in the metric of what it multiplies.

Factors are settled one after the other. What rounding one of them changes, those that are not settled yet make up for:
X·Z is nearest to it in the metric of the inputs as (X·M)·Ẑ with `M = Z H Ẑᵀ (Ẑ H Ẑᵀ)⁺`, whatever X is. So a factor is
refitted to those before it by one r × r matrix, and aims at what the float factors give, not at the original: a method
stays what it is. U of C·U·R, where it stays float, comes last and makes up for C as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from curconvert.base.types import Matrix
from curconvert.factorization.interpolative import interpolation
from curconvert.factorization.measured import deployed, measured
from curconvert.factorization.projection import Projection, with_bias
from curconvert.factorization.tasks import lapack
from curconvert.factorization.types import Factorization
from curconvert.linalg.chunked import ChunkedMatrix
from curconvert.linalg.gram import least_squares
from curconvert.linalg.metrics import FullMetric
from curconvert.options.quantization import Quantization
from curconvert.quantization.rounding import quantise
from curconvert_runtime.format.forms import factor_name
from curconvert_runtime.format.quantized import part_name

FLOAT_LINK_RANK = 128
"""Largest rank at which U of C·U·R stays float: it is small then, and has the largest entries of the three."""
# Factors in the order in which an input meets them.
_CHAINS: Mapping[str, tuple[str, ...]] = {
    "cur": ("R", "U", "C"), "interpolative": ("R", "T"), "two_factor": ("B", "A"),
}  # fmt: skip


def quantised_factors(form: str, rank: int) -> tuple[str, ...]:
    """Return the suffixes of a form's tensors that are quantised, in the order in which an input meets them.

    Args:
        form: One of `curconvert_runtime.format.forms.FORMS`, or `dense`.
        rank: r.
    """
    return tuple(suffix for suffix in _chain(form) if suffix != "U" or rank > FLOAT_LINK_RANK)


@dataclass(frozen=True)
class QuantisationTask:
    """The stored tensors of one matrix, to be quantised.

    Attributes:
        name: Weight name.
        factors: As they would be stored unquantised; of a dense matrix the weight itself.
        projection: The original linear; its bias where the method corrects it.
        quantization: What is asked for.
        dtype: Deployed dtype of what stays float.
        ridge: λ of `H + λ diag(H)`, the metric of refits.
        partner: Second moment of the other matrix's input where R is common to two.
    """

    name: str
    factors: Factorization
    projection: Projection
    quantization: Quantization
    dtype: torch.dtype
    ridge: float
    partner: Matrix | None = None

    def run(self) -> dict[str, Factorization]:
        """Return the factors by weight name: quantised ones as float32 values and, by longer suffixes, as stored parts.

        Errors are those of what is stored, and a corrected bias makes up for what rounding loses, too.

        Raises:
            InputError: A number is not finite, or does not fit.
            BackendError: A LAPACK routine did not converge.
        """
        factors, tensors = self.factors, dict(self.factors.tensors)
        chosen = quantised_factors(factors.form, factors.rank)
        with lapack(self.name):
            for suffix in self._order():
                tensors[suffix] = self._refitted(suffix, tensors)
                if suffix not in chosen:
                    continue
                stored, gram = factor_name(self.name, suffix), self._gram(suffix, tensors)
                found = quantise(stored, tensors[suffix], self.quantization.layout, gram)
                tensors[suffix] = found.rows()
                tensors |= {part_name(suffix, part): value for part, value in found.parts.items()}
            plain = {suffix: tensor for suffix, tensor in tensors.items() if "." not in suffix}
            whole = measured(
                factors.form, plain, factors.rank, self.projection.weight, self.projection.metric,
                bound=factors.bound, basis=factors.basis,
            )  # fmt: skip
            if factors.corrected_bias:
                own = {suffix: tensor for suffix, tensor in whole.tensors.items() if suffix != "bias"}
                whole = with_bias(replace(whole, tensors=own), self.projection, self.dtype)
        return {self.name: replace(whole, tensors={**tensors, **whole.tensors})}

    def _order(self) -> tuple[str, ...]:
        """Return the factors in the order in which they are settled: what stays float last."""
        chosen = quantised_factors(self.factors.form, self.factors.rank)
        return (*chosen, *(suffix for suffix in _chain(self.factors.form) if suffix not in chosen))

    def _refitted(self, suffix: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return a factor that makes up for what rounding has changed in those settled before it."""
        own, linked = tensors[suffix], self._order()[-1] == "U"
        first = suffix == _chain(self.factors.form)[0]
        if first or (suffix == "C" and linked) or not self.quantization.uses_statistics:
            return own  # columns of the weight stay such where U is to come
        wanted, stored = _before(suffix, self.factors), _before(suffix, replace(self.factors, tensors=tensors))
        metric = FullMetric(self.projection.metric, self.ridge)
        found = _wide(own) @ interpolation(ChunkedMatrix(torch.from_numpy(wanted)), stored, metric)
        if not linked:
            return torch.from_numpy(found)  # in float64 until it is rounded
        return deployed(least_squares(_wide(tensors["C"]), _wide(self.factors.tensors["C"]) @ found), self.dtype)

    def _gram(self, suffix: str, tensors: Mapping[str, Tensor]) -> Matrix | None:
        """Return the Gram matrix of a factor's input, which has passed through those before it as they are stored."""
        factors = self.factors
        if not self.quantization.uses_statistics or factors.form == "sparse_columns":
            # The input of a smaller o_proj are new combinations of the values: nothing was seen of them.
            return None
        gram = self.projection.metric.gram
        if factors.form == "modular_columns":
            kept = factors.tensors["cols"].numpy()
            return np.asarray(gram[np.ix_(kept, kept)])
        if suffix == _chain(factors.form)[0]:
            common = self.partner if suffix == "R" else None
            return gram if common is None else (gram + common) / 2
        stored = _before(suffix, replace(factors, tensors=tensors))
        return np.asarray(stored @ gram @ stored.T)


def _chain(form: str) -> tuple[str, ...]:
    return _CHAINS.get(form, ("weight",))


def _before(suffix: str, factors: Factorization) -> Matrix:
    """Multiply the factors out that an input meets before one of them, which is not the first."""
    chain = _chain(factors.form)
    first, *others = (_wide(factors.tensors[earlier]) for earlier in chain[: chain.index(suffix)])
    for matrix in others:
        first = matrix @ first
    return first


def _wide(tensor: Tensor) -> Matrix:
    return tensor.to(torch.float64).numpy()
