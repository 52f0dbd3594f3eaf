"""Quantising what a matrix is stored as, each factor in the metric of what it multiplies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from curconvert.factorization.gram import measured
from curconvert.factorization.projection import Projection, with_bias
from curconvert.factorization.tasks import lapack
from curconvert.factorization.types import Factorization
from curconvert.quantization.options import Quantization
from curconvert.quantization.rounding import quantise
from curconvert_runtime.forms import factor_name
from curconvert_runtime.quantized import part_name

Matrix = NDArray[np.float64]

FLOAT_LINK_RANK = 128
"""Largest rank at which U of C·U·R stays float: it is small then, and has the largest entries of the three."""
# Factors in the order in which an input meets them.
_CHAINS: Mapping[str, tuple[str, ...]] = {
    "cur": ("R", "U", "C"), "interpolative": ("R", "T"), "two_factor": ("B", "A"),
}  # fmt: skip


def quantised_factors(form: str, rank: int) -> tuple[str, ...]:
    """Return the suffixes of a form's tensors that are quantised, in the order in which an input meets them.

    Args:
        form: One of `curconvert_runtime.forms.FORMS`, or `dense`.
        rank: r.
    """
    chain = _CHAINS.get(form, ("weight",))
    return tuple(suffix for suffix in chain if suffix != "U" or rank > FLOAT_LINK_RANK)


@dataclass(frozen=True)
class QuantisationTask:
    """The stored tensors of one matrix, to be quantised.

    Attributes:
        name: Weight name.
        factors: As they would be stored unquantised; of a dense matrix the weight itself.
        projection: The original linear; its bias where the method corrects it.
        quantization: What is asked for.
        dtype: Deployed dtype of what stays float.
        partner: Second moment of the other matrix's input where R is common to two.
    """

    name: str
    factors: Factorization
    projection: Projection
    quantization: Quantization
    dtype: torch.dtype
    partner: Matrix | None = None

    def run(self) -> dict[str, Factorization]:
        """Return the factors by weight name: quantised ones as float32 values and, by longer suffixes, as stored parts.

        Errors are those of what is stored, and a corrected bias makes up for what rounding loses, too.

        Raises:
            InputError: A number is not finite, or does not fit.
            BackendError: A LAPACK routine did not converge.
        """
        factors, tensors = self.factors, dict(self.factors.tensors)
        with lapack(self.name):
            for suffix, gram in self._metrics(tensors):
                stored = factor_name(self.name, suffix)
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

    def _metrics(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Matrix | None]]:
        """Yield the factors to quantise with the Gram matrix of each one's input.

        That of a later factor follows from those before it as they are stored: the caller has replaced them by then.
        """
        factors = self.factors
        chosen = quantised_factors(factors.form, factors.rank)
        if not self.quantization.uses_statistics or factors.form == "sparse_columns":
            # The input of a smaller o_proj are new combinations of the values: nothing was seen of them.
            yield from ((suffix, None) for suffix in chosen)
            return
        gram = self.projection.metric.gram
        if factors.form == "modular_columns":
            kept = factors.tensors["cols"].numpy()
            gram = gram[np.ix_(kept, kept)]
        chain = _CHAINS.get(factors.form, ("weight",))
        for suffix in chain:
            if suffix in chosen:
                common = self.partner if suffix == "R" else None
                yield suffix, gram if common is None else (gram + common) / 2
            if suffix != chain[-1]:
                matrix = tensors[suffix].to(torch.float64).numpy()
                gram = matrix @ gram @ matrix.T
