"""Quantizes the stored factors of one matrix, each in the metric of its own input.

Factors are quantized one after the other, and each later factor is refitted to correct the rounding of earlier ones.
When Z is rounded to Ẑ, the product closest to X·Z in the metric of the inputs is (X·M)·Ẑ with
`M = Z H Ẑᵀ (Ẑ H Ẑᵀ)⁺`, for any X. So the refit multiplies a factor by one r × r matrix. It approximates the product of
the float factors, not the original weight, so each method keeps its definition. A factor that stays float, U of C·U·R,
comes last and also corrects the rounding of the factors that follow it in the product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from curconvert.base.types import Matrix
from curconvert.factorization.interpolative import interpolation
from curconvert.factorization.measured import deployed, measured
from curconvert.factorization.projection import Projection, with_bias
from curconvert.factorization.tasks import lapack
from curconvert.factorization.types import Factorization, arrays
from curconvert.linalg.chunked import ChunkedMatrix
from curconvert.linalg.gram import least_squares
from curconvert.linalg.metrics import FullMetric
from curconvert.options.quantization import Quantization
from curconvert.quantization.rounding import quantize
from curconvert_runtime.format.forms.form import INDICES, factor_name
from curconvert_runtime.format.quantized import part_name


@dataclass(frozen=True)
class QuantizationTask:
    """Quantizes the stored tensors of one matrix.

    Attributes:
        name: Weight name.
        factors: The unquantized factors; for a dense matrix the weight itself.
        projection: The original linear; with its bias if the method corrects it.
        quantization: The requested quantization.
        dtype: Deployed dtype of the tensors that stay float.
        ridge: λ of `H + λ diag(H)`, the metric of refits.
        partner: Second moment of the other matrix's input if two matrices share R.
    """

    name: str
    factors: Factorization
    projection: Projection
    quantization: Quantization
    dtype: torch.dtype
    ridge: float
    partner: Matrix | None = None

    def run(self) -> dict[str, Factorization]:
        """Return the factors by weight name; quantized ones as float32 values and also as stored parts.

        The suffixes of stored parts contain a dot. The errors are measured on the stored tensors. A corrected bias also
        corrects the mean of the rounding errors.

        Raises:
            InputError: A number is not finite, or does not fit.
            BackendError: A LAPACK routine did not converge.
        """
        factors, tensors = self.factors, dict(self.factors.tensors)
        chosen = factors.traits.quantized(factors.rank)
        with lapack(self.name):
            for suffix in self._order():
                tensors[suffix] = self._refitted(suffix, tensors)
                if suffix not in chosen:
                    continue
                stored, gram = factor_name(self.name, suffix), self._gram(suffix, tensors)
                found = quantize(stored, tensors[suffix], self.quantization.layout, gram)
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
        """Return the factors in the order of quantization; those that stay float come last."""
        chosen = self.factors.traits.quantized(self.factors.rank)
        return (*chosen, *(suffix for suffix in self.factors.entry.factors if suffix not in chosen))

    def _refitted(self, suffix: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return a factor refitted to correct the rounding of the factors already quantized."""
        chain, last = tuple(self.factors.entry.factors), self._order()[-1]
        place, own = chain.index(suffix), tensors[suffix]
        # Factors after one that stays float are not refitted: with U still to come, C keeps columns of the weight.
        if place == 0 or place > chain.index(last) or not self.quantization.uses_statistics:
            return own
        before, after, original = chain[:place], chain[place + 1 :], self.factors.tensors
        metric = FullMetric(self.projection.metric, self.ridge)
        wanted = ChunkedMatrix(torch.from_numpy(_multiplied(before, original)))
        found = _wide(own) @ interpolation(wanted, _multiplied(before, tensors), metric)
        if last == chain[-1]:
            return torch.from_numpy(found)  # stays float64: it is rounded next
        return deployed(least_squares(_multiplied(after, tensors), _multiplied(after, original) @ found), self.dtype)

    def _gram(self, suffix: str, tensors: Mapping[str, Tensor]) -> Matrix | None:
        """Return the Gram matrix of a factor's input: the layer's input after the stored factors before this one."""
        if not self.quantization.uses_statistics:
            return None
        indices = {s: t for s, t in self.factors.tensors.items() if s in INDICES}
        gram = self.factors.traits.seen(self.projection.metric.gram, arrays(indices))
        chain = tuple(self.factors.entry.factors)
        before = chain[: chain.index(suffix)]
        if gram is None:
            return None
        if not before:
            return gram if self.partner is None else (gram + self.partner) / 2
        stored = _multiplied(before, tensors)
        return np.asarray(stored @ gram @ stored.T)


def _multiplied(suffixes: Sequence[str], tensors: Mapping[str, Tensor]) -> Matrix:
    """Return the product of some factors, given in the order in which they apply to an input."""
    first, *others = (_wide(tensors[suffix]) for suffix in suffixes)
    for matrix in others:
        first = matrix @ first
    return first


def _wide(tensor: Tensor) -> Matrix:
    return tensor.to(torch.float64).numpy()
