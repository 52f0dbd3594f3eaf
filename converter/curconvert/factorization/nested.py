"""Computes nested approximations: a larger one gives every smaller one, without statistics.

Low rank: all best approximations `Ŵ_r = left[:, :r] · right[:r]` of `two_sided` share `left`, whose columns are in the
order of their importance. From any `Ŵ_k`, k ≥ r, and `left`, least squares recovers `right[:k]`, and so `Ŵ_r`.

Fewer neurons: sort the neurons, those that are dropped last first, and let L be the Cholesky factor of their ridged
Gram matrix in that order. The refitted down of `modular.corrected_down` for the first k neurons is
`(W L)[:, :k] L[:k, :k]⁻¹`. So `W'_k` follows from any `W'_j` with j ≥ k by the leading part of one triangular matrix.
The scale of columns cancels, so L is stored with ones on its diagonal. `L[i, j]` is then what neuron i adds to neuron j
while only the neurons before j are present.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from curconvert.base.types import Indices, Matrix, Vector
from curconvert.factorization.two_sided import TwoSided
from curconvert.linalg.gram import LEAST_RIDGE, least_squares


def nested_basis(best: TwoSided, rank: int) -> Matrix:
    """Return the leading columns of `left`, each of norm 1, (m, r): their span does not depend on scale.

    Args:
        best: All best approximations of a matrix.
        rank: r, of the matrix or of the approximation that will be cut later.
    """
    columns = best.left[:, :rank]
    return np.asarray(columns / np.linalg.norm(columns, axis=0))


def truncated(product: Matrix, basis: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """Return the approximation of a smaller rank that is nested in a given one.

    Args:
        product: Ŵ_k, (m, n), in the span of the basis; W itself if k is its rank.
        basis: Independent columns in the order of their importance, (m, k).
        rank: r ≤ k.

    Returns:
        A, (m, r) with orthonormal columns, and B, (r, n): Ŵ_r = A·B.
    """
    return TwoSided(basis, least_squares(basis, product)).factors(rank)


def elimination(gram: Matrix, order: Indices, ridge: float) -> Matrix:
    """Return L of `G + λ diag(G)`, with neurons in an order and ones on the diagonal, (k, k) lower triangular.

    Args:
        gram: G, (m, m) symmetric positive semi-definite.
        order: Neurons, those that are dropped last first, (k,).
        ridge: λ; raised to 1e-10 if smaller.
    """
    inner = gram[np.ix_(order, order)]
    scales = np.sqrt(np.diag(inner))
    scales = np.where(scales > 0, scales, 1.0)
    inner = inner / scales[:, None] / scales
    np.fill_diagonal(inner, np.diag(inner) + max(ridge, LEAST_RIDGE))
    factor = scipy.linalg.cholesky(inner, lower=True, overwrite_a=True, check_finite=False) * scales[:, None]
    return np.asarray(factor / np.diag(factor))


def eliminated(weight: Matrix, factor: Matrix, count: int) -> Matrix:
    """Return the weight of down refitted to fewer neurons.

    Args:
        weight: W'_k, (n, k), its columns in the order of the factor.
        factor: L, (k, k) lower triangular, ones on its diagonal.
        count: Number of neurons to keep, the first ones.

    Returns:
        (n, count).
    """
    images = weight @ factor[:, :count]
    solved = scipy.linalg.solve_triangular(
        factor[:count, :count], images.T, trans="T", lower=True, unit_diagonal=True, check_finite=False
    )
    return np.asarray(solved.T)


def packed(factor: Matrix) -> Vector:
    """Return L's entries below the diagonal, row by row, (k (k − 1) / 2,); a leading block of L is a leading part."""
    return np.asarray(factor[np.tril_indices(len(factor), -1)])


def unpacked(values: Vector, size: int) -> Matrix:
    """Return the leading (size, size) block of L from what `packed` returned; further values are ignored."""
    factor = np.eye(size)
    factor[np.tril_indices(size, -1)] = values[: size * (size - 1) // 2]
    return factor
