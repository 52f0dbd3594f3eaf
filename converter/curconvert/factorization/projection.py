"""One linear to factorize, and the bias that makes up for the mean of what its factors lose."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from curconvert.factorization.measured import deployed
from curconvert.factorization.types import Factorization
from curconvert.linalg.gram import output_norm
from curconvert.linalg.statistics import InputStatistics


@dataclass(frozen=True)
class Projection:
    """One linear.

    Attributes:
        weight: W, (out_features, in_features), any float dtype.
        statistics: Of its input.
        bias: b, (out_features,), any float dtype; None where there is none, or it shall stay as it is.
        teacher_share: α, how much of its inputs' drift the factors make up for; None where none is known.
    """

    weight: Tensor
    statistics: InputStatistics
    bias: Tensor | None = None
    teacher_share: float | None = None

    @property
    def metric(self) -> InputStatistics:
        """Statistics in which factors are best: centered where the bias can carry the mean."""
        return self.statistics if self.bias is None else self.statistics.centered


def with_bias(factors: Factorization, projection: Projection, dtype: torch.dtype) -> Factorization:
    """Return a factorization with the best bias for its tensors as they are stored: `b' = b + (W − Ŵ) μ`.

    No other constant gives a smaller `E‖(W x + b) − (Ŵ x + b')‖²`. What is left is the error on `x − μ`.
    Where the factors make up for a drift, `α W δ` is added: the mean of what its inputs have lost of the original's.

    Args:
        factors: Of the projection's weight; returned as they are where there is no bias.
        projection: The linear.
        dtype: Deployed dtype of the bias.
    """
    if projection.bias is None:
        return factors
    W, b = projection.weight.to(torch.float64).numpy(), projection.bias.to(torch.float64).numpy()
    with np.errstate(invalid="ignore", over="ignore"):  # factors that overflowed are the caller's to refuse
        lost = W - factors.product().numpy()
        best = kept = b + lost @ projection.statistics.mean
        if projection.teacher_share and projection.statistics.drift is not None:
            best = kept + projection.teacher_share * (W @ projection.statistics.drift.mean)
        stored = deployed(best, dtype)
        shift = np.linalg.norm(kept - stored.to(torch.float64).numpy())  # rounding, and what makes up for a drift
        error = float(np.hypot(output_norm(lost, projection.metric.gram), shift))
    whole = output_norm(W, projection.statistics.gram)
    return replace(
        factors,
        tensors={**factors.tensors, "bias": stored},
        relative_output_error=error / whole if whole > 0 else 0.0,
        corrected_bias=True,
    )
