"""What a matrix's factors shall be near: the weight, or one that makes up for blocks compressed before it as well.

With the sequential rule a linear is factorized for x̂, what enters it in the compressed model. Two outputs can be
aimed at: the student's W x̂, or the teacher's W x of the original's inputs x. The first leaves what earlier factors have
lost as it is; the second needs another weight, the regression of W x on x̂, which also learns what is particular to
the calibration tokens. So the target is between them, and how far is decided on tokens that were held out.
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
        statistics: Of x̂, with its drift.
        ridge: λ.

    Returns:
        (m, n).
    """
    assert statistics.drift is not None
    return ridge_solve(weight @ statistics.drift.cross, statistics.gram, ridge)


def held_out_share(projection: Projection, ridge: float) -> float | None:
    """Choose α of `W + α D` by the error on held-out tokens, with D from the others.

    `E‖W x − (W + α D) x̂‖²` is a parabola in α, so its minimum on [0, 1] needs no search. It is the error of the target
    itself, not of its factors: those would have to be computed for each α, and where it was tried the directions that
    they drop changed the choice by 0.01.

    Args:
        projection: Its statistics may have a drift and a part held out.
        ridge: λ of `correction`.

    Returns:
        α; 0 where nothing was held out or nothing has drifted, None without a drift.
    """
    whole = projection.statistics
    if whole.drift is None:
        return None
    if whole.held_out is None:
        return 0.0
    known, unseen = whole.rest, whole.held_out
    if projection.bias is not None:  # it carries the means
        known, unseen = known.centered, unseen.centered
    assert unseen.drift is not None
    W = projection.weight.to(torch.float64).numpy()
    D = correction(W, known, ridge)
    gain, cost = np.vdot(W @ unseen.drift.cross, D), np.vdot(D @ unseen.gram, D)
    return float(np.clip(gain / cost, 0, 1)) if cost > 0 else 0.0


def drift_corrected(projection: Projection, ridge: float) -> tuple[Projection, Tensor]:
    """Decide what a linear's factors shall be near.

    Args:
        projection: The linear.
        ridge: λ.

    Returns:
        The projection with its `teacher_share`; the target `W + α D`, D from all tokens, (out_features, in_features):
        float64, or the weight as it is where α is 0.
    """
    share = held_out_share(projection, ridge)
    drift_corrected = replace(projection, teacher_share=share)
    if not share:
        return drift_corrected, projection.weight
    W = projection.weight.to(torch.float64)
    return drift_corrected, W + share * torch.from_numpy(correction(W.numpy(), projection.metric, ridge))
