"""Chooses the target of a matrix's factors: the weight, or one that also corrects the errors of earlier blocks.

With `--sequential`, a linear is factorized for x̂, its input in the compressed model. The factors can approximate two
outputs: the student's W x̂, or the teacher's W x with the original's input x. The first keeps the errors of earlier
factors. The second needs another weight, the regression of W x on x̂, which overfits to the calibration tokens. So the
target is between the two, at the share with the smallest error on held-out tokens.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from curconvert.base.types import Matrix
from curconvert.factorization.projection import Projection
from curconvert.linalg.gram import ridge_solve
from curconvert.linalg.statistics import InputStatistics


def correction(weight: Matrix, statistics: InputStatistics, ridge: float) -> Matrix:
    """Return the D for which `W + D` is the teacher's target: `W Δ (H + λ diag(H))⁻¹`, Δ the drift.

    It minimizes `E‖W x − (W + D) x̂‖² + λ ‖D diag(H)^½‖²`: without a ridge `W + D = W E[x x̂ᵀ] H⁻¹`.

    Args:
        weight: W, (m, n).
        statistics: Statistics of x̂, with its drift.
        ridge: λ.

    Returns:
        (m, n).
    """
    assert statistics.drift is not None
    return ridge_solve(weight @ statistics.drift.cross, statistics.gram, ridge)


def held_out_share(projection: Projection, ridge: float) -> float | None:
    """Choose α of `W + α D` by the error on held-out tokens, with D from the others.

    `E‖W x − (W + α D) x̂‖²` is a parabola in α, so its minimum on [0, 1] needs no search. This is the error of the
    target, not of its factors, which would have to be computed for each α. In a trial, the factors' error changed the
    choice of α by 0.01.

    Args:
        projection: The linear; its statistics may have a drift and a held-out part.
        ridge: λ of `correction`.

    Returns:
        α; 0 if nothing was held out or the correction is 0, None without a drift.
    """
    whole = projection.statistics
    if whole.drift is None:
        return None
    if whole.held_out is None:
        return 0.0
    known, unseen = whole.rest, whole.held_out
    if projection.bias is not None:  # the corrected bias absorbs the means
        known, unseen = known.centered, unseen.centered
    assert unseen.drift is not None
    W = projection.weight.to(torch.float64).numpy()
    D = correction(W, known, ridge)
    gain, cost = np.vdot(W @ unseen.drift.cross, D), np.vdot(D @ unseen.gram, D)
    return float(np.clip(gain / cost, 0, 1)) if cost > 0 else 0.0


def drift_corrected(projection: Projection, ridge: float) -> tuple[Projection, Tensor]:
    """Choose the target of a linear's factors.

    Args:
        projection: The linear.
        ridge: λ of `correction`.

    Returns:
        The projection with its `teacher_share`; the target `W + α D`, D from all tokens, (out_features, in_features):
        float64, or the unchanged weight if α is 0 or unknown.
    """
    share = held_out_share(projection, ridge)
    drift_corrected = replace(projection, teacher_share=share)
    if not share:
        return drift_corrected, projection.weight
    W = projection.weight.to(torch.float64)
    return drift_corrected, W + share * torch.from_numpy(correction(W.numpy(), projection.metric, ridge))
