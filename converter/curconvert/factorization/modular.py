"""Compresses an MLP: drops some of its neurons and corrects the output projection for them.

Every supported family computes `down(act(gate(x)) ∘ up(x))` with an elementwise activation. So a neuron is a row of
gate and of up and a column of down, and dropping some leaves the activations of the others exactly the same. The
contribution of the dropped neurons to the output is estimated from the kept ones: the Nyström approximation of MoDeGPT
(arXiv 2408.09632). G is the Gram matrix of the activations h, down's input; K are the kept neurons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch

from curconvert.base.errors import InputError
from curconvert.base.roles import MODULAR, Role
from curconvert.base.types import Indices, Matrix, Vector
from curconvert.factorization.measured import deployed, measured
from curconvert.factorization.projection import Projection, with_bias
from curconvert.factorization.types import Factorization
from curconvert.linalg.gram import LEAST_RIDGE, ridge_solve
from curconvert.linalg.statistics import InputStatistics

RIDGES = (0.1, 0.3, 1.0)
"""Candidates of `held_out_ridge`, in addition to the given one."""
_OUTPUTS = 64  # outputs compared to choose the ridge: their mean is as reliable as that of all outputs


@dataclass(frozen=True)
class ModularOptions:
    """Says how strongly to regularize.

    Attributes:
        leverage_ridge: Ridge of the scores that choose neurons, relative to the mean diagonal.
        ridge: Ridge of the correction of down, relative to each neuron's energy.
    """

    leverage_ridge: float
    ridge: float


def ridge_leverage(gram: Matrix, column_norms: Vector, ridge: float) -> Vector:
    """Return the ridge leverage score of each neuron: `diag(G'(G' + λI)⁻¹)`, G' = diag(s) G diag(s).

    These are the scores of MoDeGPT (arXiv 2408.09632) on activations scaled by their weight in the output. They are
    computed as `1 − λ diag((G' + λI)⁻¹)`, by Cholesky; λ = ridge · mean diag G'.

    Args:
        gram: G, (m, m) symmetric positive semi-definite.
        column_norms: s, (m,), such as the norms of down's columns.
        ridge: Relative ridge.

    Returns:
        (m,), each between 0 and 1; all 0 if nothing reaches the output.
    """
    scaled = gram * column_norms[:, None] * column_norms
    shift = max(ridge, LEAST_RIDGE) * float(np.mean(np.diag(scaled)))
    if shift == 0:
        return np.zeros(len(scaled))
    np.fill_diagonal(scaled, np.diag(scaled) + shift)
    factor = scipy.linalg.cholesky(scaled, lower=True, overwrite_a=True, check_finite=False)
    root, _ = scipy.linalg.lapack.dtrtri(factor, lower=1, overwrite_c=1)  # (G' + λI)⁻¹ = rootᵀ·root
    return np.asarray(np.clip(1 - shift * np.einsum("ij,ij->j", root, root), 0, 1))


def keep_neurons(scores: Vector, count: int) -> Indices:
    """Return the neurons with the largest scores, ascending; the lower index wins a tie.

    Args:
        scores: (m,).
        count: k.

    Returns:
        (k,) int32.

    Raises:
        InputError: Not 1 ≤ k ≤ m.
    """
    if not 1 <= count <= len(scores):
        raise InputError(f"{count} neurons: expected 1 to {len(scores)}")
    return np.sort(np.argsort(-scores, kind="stable")[:count]).astype(np.int32)


def corrected_down(weight: Matrix, gram: Matrix, kept: Indices, ridge: float) -> Matrix:
    """Return the W' that minimizes `E‖W h − W' h_K‖² + λ ‖(W' − W_K) D^½‖²`, with D the diagonal of G[K,K].

    Without a ridge it is `W G[:,K] G[K,K]⁻¹`, the Nyström approximation of MoDeGPT (arXiv 2408.09632). The ridge pulls
    towards W's own columns, relative to each neuron's energy. With all neurons kept, the result is W.

    Args:
        weight: W, (n, m), of down.
        gram: G, (m, m) symmetric positive semi-definite.
        kept: K, (k,).
        ridge: λ.

    Returns:
        W', (n, k).
    """
    own, inner = weight[:, kept], gram[np.ix_(kept, kept)]
    return np.asarray(own + ridge_solve(weight @ gram[:, kept] - own @ inner, inner, ridge))


def held_out_ridge(weight: Matrix, statistics: InputStatistics, count: int, options: ModularOptions) -> float:
    """Choose the ridge of `corrected_down` with the smallest error on held-out tokens, fitted to the other tokens.

    Args:
        weight: W, (n, m), of down.
        statistics: Statistics of its input; without a held-out part, the options' own ridge is returned.
        count: Neurons to keep for the comparison, those with the largest leverage scores.
        options: The default ridge, which wins ties, and the ridge of the scores.

    Returns:
        One of `RIDGES`, or the options' own ridge.
    """
    if statistics.held_out is None:
        return options.ridge
    # Uncentered, even with a bias: how reliable the correction is does not depend on the mean.
    gram, unseen = statistics.rest.gram, statistics.held_out.gram
    kept = keep_neurons(ridge_leverage(gram, np.linalg.norm(weight, axis=0), options.leverage_ridge), count)

    outputs = weight[:: -(-len(weight) // _OUTPUTS)]

    def error(ridge: float) -> float:
        lost = outputs.copy()
        lost[:, kept] -= corrected_down(outputs, gram, kept, ridge)
        return float(np.einsum("ij,ij->", lost @ unseen, lost))

    return min((options.ridge, *RIDGES), key=error)


def factorize_mlp(
    projections: Mapping[Role, Projection],
    count: int,
    options: ModularOptions,
    dtype: torch.dtype,
    kept: Indices | None = None,
) -> dict[Role, Factorization]:
    """Factorize an MLP into one with fewer neurons.

    The output error reported for down is the MLP's: `‖W h − W' h_K‖ / ‖W h‖` over the calibration tokens. For gate and
    up it is the dropped share of their own output. If down has a bias, the bias absorbs the mean of the dropped
    neurons. Neurons are then chosen and down corrected for centered activations, and the error includes the bias.

    Args:
        projections: Projections of gate, up and down.
        count: k, neurons to keep, 1 ≤ k ≤ m.
        options: Ridges.
        dtype: Deployed dtype of weights and biases.
        kept: Which neurons to keep, (k,) ascending; None keeps those with the largest ridge leverage scores.

    Returns:
        By role: gate and up in form `modular_rows` (exact copies of rows in the deployed dtype, with the bias of these
        rows), down in form `modular_columns`.

    Raises:
        InputError: The MLP has fewer than `count` neurons.
    """
    down = projections[Role.DOWN]
    W, metric = down.weight.to(torch.float64).numpy(), down.metric
    G = metric.gram
    if kept is None:
        kept = keep_neurons(ridge_leverage(G, np.linalg.norm(W, axis=0), options.leverage_ridge), count)
    index = torch.from_numpy(kept)
    found: dict[Role, Factorization] = {}
    for role in (Role.GATE, Role.UP):
        part = projections[role]
        tensors = {"weight": part.weight.to(dtype).index_select(0, index), "rows": index}
        if part.bias is not None:
            tensors["bias"] = part.bias.to(dtype).index_select(0, index)
        found[role] = measured(MODULAR[role], tensors, count, part.weight, part.statistics)
    tensors = {"weight": deployed(corrected_down(W, G, kept, options.ridge), dtype), "cols": index}
    factors = measured(MODULAR[Role.DOWN], tensors, count, down.weight, metric)
    found[Role.DOWN] = with_bias(factors, down, dtype)
    return found
