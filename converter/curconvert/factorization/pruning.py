"""Drops the neurons of an MLP in steps, each time those that cost least after the others are refitted.

This is Optimal Brain Surgeon on whole neurons (ZipLM, arXiv 2302.04089): with P = G⁻¹ for the Gram matrix G of the
activations, dropping neuron j and refitting the others costs `w_jᵀ F w_j / P_jj`, with w_j its column of the refitted
down and F the Fisher matrix of the output. The refit is the Nyström correction of `modular.corrected_down`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.linalg

from curconvert.base.types import Indices, Matrix
from curconvert.linalg.gram import ridged


def drop_neurons(
    weight: Matrix, gram: Matrix, fisher: Matrix, ridge: float, *, step: int, least: int
) -> Iterator[tuple[Indices, Matrix]]:
    """Drop neurons, `step` at a time, and refit down after each step.

    A step drops its cheapest neurons and refits once. Activations are scaled to unit energy, so that a few massive ones
    do not set the ridge of all others.

    Args:
        weight: W of down, (n, m).
        gram: G, (m, m) symmetric positive semi-definite.
        fisher: F, (n, n) symmetric positive semi-definite.
        ridge: λ of `G + λ diag(G)`.
        step: Neurons to drop at a time, at least 1.
        least: Number of neurons at which to stop, at least 1.

    Yields:
        The remaining neurons, (k,) ascending, and the refitted weight, (n, k).
    """
    scales = np.sqrt(np.diag(gram))
    alive = np.flatnonzero(scales)  # the others never fire: dropping them is free
    if len(alive) < least:
        alive = np.sort(np.argsort(-scales, kind="stable")[:least])
    scales = np.where(scales > 0, scales, 1.0)
    unit = ridged(gram, max(ridge, 1e-10)) / scales[:, None] / scales
    np.fill_diagonal(unit, np.maximum(np.diag(unit), 1e-10))
    factor = scipy.linalg.cho_factor(unit[np.ix_(alive, alive)], check_finite=False)
    inverse = scipy.linalg.cho_solve(factor, np.eye(len(alive)), check_finite=False)
    current = (weight * scales)[:, alive]
    while len(alive) > least:
        count = min(step, len(alive) - least)
        scores = np.einsum("ij,ij->j", current, fisher @ current) / np.diag(inverse)
        dropped = np.argsort(scores, kind="stable")[:count]
        kept = np.delete(np.arange(len(alive)), dropped)
        share = scipy.linalg.solve(
            inverse[np.ix_(dropped, dropped)], inverse[dropped][:, kept], assume_a="pos", check_finite=False
        )
        current = current[:, kept] - current[:, dropped] @ share
        inverse = inverse[np.ix_(kept, kept)] - inverse[np.ix_(kept, dropped)] @ share
        alive = alive[kept]
        yield alive.astype(np.int32), current / scales[alive]
