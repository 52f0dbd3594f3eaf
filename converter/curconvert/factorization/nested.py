"""Approximations that lie within each other: a smaller one is made from a larger one, without statistics.

Low rank: all the best approximations `Ŵ_r = left[:, :r] · right[:r]` of `two_sided` have `left` in common, with its
columns in one order of worth. Of any `Ŵ_k`, k ≥ r, `left` alone gives `right[:k]` back by least squares, and so `Ŵ_r`.

Fewer neurons: with neurons in the order in which they are kept, and the Cholesky factor L of their ridged Gram matrix
in that order, the refitted down of `modular.corrected_down` for the first k of them is `(W L)[:, :k] L[:k, :k]⁻¹`.
So `W'_k` follows from any `W'_j` with j ≥ k by the leading part of one triangular matrix. The columns' scale cancels:
L is stored with ones on its diagonal, and then `L[i, j]` is what neuron i adds to neuron j as long as only the neurons
before j are there too.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg

from curconvert.base.types import Indices, Matrix, Vector
from curconvert.factorization.two_sided import TwoSided
from curconvert.linalg.gram import LEAST_RIDGE, least_squares


def nested_basis(best: TwoSided, rank: int) -> Matrix:
    """Return the leading columns of `left`, each of norm 1, (m, r): scale does not matter to what they span.

    Args:
        best: All best approximations of a matrix.
        rank: r, of the matrix or of the approximation that is to be cut later.
    """
    columns = best.left[:, :rank]
    return np.asarray(columns / np.linalg.norm(columns, axis=0))


def truncated(product: Matrix, basis: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """Return the approximation of a smaller rank that one of the basis' rank contains.

    Args:
        product: Ŵ_k, (m, n), in the span of the basis; W itself where k is its rank.
        basis: Columns in the order of their worth, (m, k), independent.
        rank: r ≤ k.

    Returns:
        A, (m, r) with orthonormal columns, and B, (r, n): Ŵ_r = A·B.
    """
    return TwoSided(basis, least_squares(basis, product)).factors(rank)


def elimination(gram: Matrix, order: Indices, ridge: float) -> Matrix:
    """Return L of `G + λ diag(G)` in an order of neurons, with ones on its diagonal, (k, k) lower triangular.

    Args:
        gram: G, (m, m) symmetric positive semi-definite.
        order: Neurons, those that are dropped last first, (k,).
        ridge: λ; at least 1e-10 is taken.
    """
    inner = gram[np.ix_(order, order)]
    scales = np.sqrt(np.diag(inner))
    scales = np.where(scales > 0, scales, 1.0)
    inner = inner / scales[:, None] / scales
    np.fill_diagonal(inner, np.diag(inner) + max(ridge, LEAST_RIDGE))
    factor = scipy.linalg.cholesky(inner, lower=True, overwrite_a=True, check_finite=False) * scales[:, None]
    return np.asarray(factor / np.diag(factor))


def eliminated(weight: Matrix, factor: Matrix, count: int) -> Matrix:
    """Return down refitted to fewer neurons.

    Args:
        weight: W'_k, (n, k), its columns in the order of the factor.
        factor: L, (k, k) lower triangular, ones on its diagonal.
        count: Neurons to keep: the first so many.

    Returns:
        (n, count).
    """
    images = weight @ factor[:, :count]
    solved = scipy.linalg.solve_triangular(
        factor[:count, :count], images.T, trans="T", lower=True, unit_diagonal=True, check_finite=False
    )
    return np.asarray(solved.T)


def packed(factor: Matrix) -> Vector:
    """Return what lies below the diagonal, row by row, (k (k − 1) / 2,): the leading part of L is a leading part."""
    return np.asarray(factor[np.tril_indices(len(factor), -1)])


def unpacked(values: Vector, size: int) -> Matrix:
    """Return L of what `packed` has returned, (size, size); more values than that are left out."""
    factor = np.eye(size)
    factor[np.tril_indices(size, -1)] = values[: size * (size - 1) // 2]
    return factor
