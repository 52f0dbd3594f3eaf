"""Describes one linear to factorize, and computes the bias that corrects the mean error of its factors."""

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
    """Holds one linear with the statistics of its input.

    Attributes:
        weight: W, (out_features, in_features), any float dtype.
        statistics: Statistics of its input.
        bias: b, (out_features,), any float dtype; None if the linear has none, or if its bias must not change.
        teacher_share: α, the share of its inputs' drift that the factors correct; None if no drift is known.
    """

    weight: Tensor
    statistics: InputStatistics
    bias: Tensor | None = None
    teacher_share: float | None = None

    @property
    def metric(self) -> InputStatistics:
        """Statistics for which factors are optimized: centered if the bias can absorb the mean."""
        return self.statistics if self.bias is None else self.statistics.centered


def with_bias(factors: Factorization, projection: Projection, dtype: torch.dtype) -> Factorization:
    """Return a factorization with the best bias for its stored tensors: `b' = b + (W − Ŵ) μ`.

    No other constant gives a smaller `E‖(W x + b) − (Ŵ x + b')‖²`. The error on `x − μ` remains. If the factors correct
    a drift, `α W δ` is added: α times the mean output difference that the inputs' drift causes.

    Args:
        factors: Factors of the projection's weight; returned unchanged if the projection has no bias.
        projection: The linear.
        dtype: Deployed dtype of the bias.
    """
    if projection.bias is None:
        return factors
    W, b = projection.weight.to(torch.float64).numpy(), projection.bias.to(torch.float64).numpy()
    with np.errstate(invalid="ignore", over="ignore"):  # the caller rejects factors that overflow
        lost = W - factors.product().numpy()
        best = kept = b + lost @ projection.statistics.mean
        if projection.teacher_share and projection.statistics.drift is not None:
            best = kept + projection.teacher_share * (W @ projection.statistics.drift.mean)
        stored = deployed(best, dtype)
        shift = np.linalg.norm(kept - stored.to(torch.float64).numpy())  # rounding, and the correction of a drift
        error = float(np.hypot(output_norm(lost, projection.metric.gram), shift))
    whole = output_norm(W, projection.statistics.gram)
    return replace(
        factors,
        tensors={**factors.tensors, "bias": stored},
        relative_output_error=error / whole if whole > 0 else 0.0,
        corrected_bias=True,
    )
