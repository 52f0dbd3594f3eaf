"""Leading singular vectors of an importance matrix: exact, or from a block Krylov space."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray

from curconvert.base.types import Matrix
from curconvert.linalg.chunked import ChunkedMatrix, product

_STEPS = 5  # applications of S Sᵀ; docs/benchmarks.md says how often DEIM then finds the points of a full SVD
_DEPENDENT = 1e-6  # ratio of pivots below which a second pass of CholeskyQR would not make up for the first
_EXTRA = 16  # width of a block beyond the rank
_SINGLE_RANGE = 1e-5  # of eigenvalues of a Gram matrix, which float32 resolves
_GRAM_SIDE = 1024  # up to which all eigenvectors of a Gram matrix take no longer than a Krylov space


def exact_bases(matrix: Matrix, rank: int) -> tuple[Matrix, Matrix, float]:
    """Return r leading singular vectors of each side by a full SVD, and σ_{r+1}.

    Args:
        matrix: S, (m, n).
        rank: 1 ≤ r ≤ min(m, n).

    Returns:
        (m, r) and (n, r), leading first; σ_{r+1}, 0 where there is none.
    """
    left, sigma, right = scipy.linalg.svd(matrix, full_matrices=False, check_finite=False)
    following = float(sigma[rank]) if rank < len(sigma) else 0.0
    return np.ascontiguousarray(left[:, :rank]), np.ascontiguousarray(right[:rank].T), following


def leading_bases(matrix: ChunkedMatrix, rank: int, rng: np.random.Generator) -> tuple[Matrix, Matrix]:
    """Return r leading singular vectors of each side without a full SVD.

    From the eigenvectors of the smaller Gram matrix, exact to about 1e-5, where they are cheap or a Krylov space would
    be no smaller; otherwise from such a space.

    Args:
        matrix: S, (m, n).
        rank: 1 ≤ r ≤ min(m, n).
        rng: For `krylov_bases`.

    Returns:
        (m, r) and (n, r), leading first, orthonormal.
    """
    if krylov_size(matrix.shape, rank):
        return krylov_bases(matrix, rank, rng)
    return _gram_bases(matrix, rank)


def krylov_size(shape: tuple[int, int], rank: int) -> int:
    """Return the dimension of the Krylov space that is taken for a matrix, or 0 where its Gram matrix serves."""
    size = (1 + _STEPS) * (rank + _EXTRA)
    return size if _GRAM_SIDE < min(shape) > size else 0


def krylov_bases(matrix: ChunkedMatrix, rank: int, rng: np.random.Generator) -> tuple[Matrix, Matrix]:
    """Return r leading singular vectors of each side from a block Krylov space (Musco & Musco, arXiv 1504.05477).

    The space is spanned by `S Ω, (S Sᵀ) S Ω, …`, Ω Gaussian. Unlike the last of these alone, as subspace iteration
    takes it, all of them together resolve single vectors of a slowly decaying spectrum, and DEIM needs single vectors.
    Products with S are float32: they take half the time, and a copy of twice a 16-bit weight's size.

    Args:
        matrix: S, (m, n).
        rank: r, with `(1 + _STEPS)(r + _EXTRA) ≤ min(m, n)`.
        rng: Draws Ω.

    Returns:
        (m, r) and (n, r), leading first, orthonormal.
    """
    width, (m, n) = rank + _EXTRA, matrix.shape
    size = (1 + _STEPS) * width
    S = matrix.single()
    if m > n:  # the space lies on the short side, where projections on it are cheap
        S = S.T
    space = np.empty((S.shape[0], size))
    images = torch.empty((size, S.shape[1]), dtype=torch.float32, device=S.device)
    block = rng.standard_normal((S.shape[1], width)).astype(np.float32)
    for start in range(0, size, width):
        part, known = slice(start, start + width), space[:, :start]
        found = product(S, torch.from_numpy(block).to(S.device)).double().cpu().numpy()
        # Where nothing new is found, QR would return what the space has already: this noise is new, and harmless.
        noise = np.finfo(np.float32).eps * (np.linalg.norm(found) or 1.0) / np.sqrt(found.size)
        found += noise * rng.standard_normal(found.shape)
        for _ in range(2):
            found = _orthonormal(found - known @ (known.T @ found))
        space[:, part] = found
        images[part] = product(torch.from_numpy(found.T.astype(np.float32)).to(S.device), S)
        block = images[part].T.cpu().numpy()
    # S on this space is Q (Qᵀ S). A Gram matrix serves: what it loses lies far below the trailing of these directions.
    nearly, _ = _leading(product(images, images.T).cpu().numpy(), rank + _EXTRA)
    placed = torch.from_numpy(nearly.astype(np.float32)).to(S.device)
    leading, found = _resolved(nearly, product(images.T, placed).double().cpu().numpy(), rank)
    left, right = space @ leading, _orthonormal(found)
    return (right, left) if m > n else (left, right)


def _gram_bases(matrix: ChunkedMatrix, rank: int) -> tuple[Matrix, Matrix]:
    """The same from the smaller one of the matrix's two Gram matrices.

    Its eigenvectors are those of float32, which takes half the time: single ones are as inexact as their eigenvalues
    are close to each other, but what they span all together is not, and a Rayleigh-Ritz step finds them in it.
    """
    S = matrix.dense()
    tall = S.shape[0] > S.shape[1]
    S = S.T if tall else S
    single = S.astype(np.float32)
    size = min(rank + _EXTRA, len(S))
    nearly, span = _leading(single @ single.T, size)
    if span < _SINGLE_RANGE:
        nearly, _ = _leading(S @ S.T, size)
    left, images = _resolved(nearly, S.T @ nearly, rank)
    right = _orthonormal(images)
    return (right, left) if tall else (left, right)


def _leading(gram: NDArray[np.floating[Any]], size: int) -> tuple[Matrix, float]:
    """Return the leading eigenvectors of a symmetric matrix, (n, size), and the least of their values over the largest.

    Computed in the matrix's precision, orthonormal in float64.
    """
    chosen = (len(gram) - size, len(gram) - 1)
    values, vectors = scipy.linalg.eigh(gram, subset_by_index=chosen, driver="evr", check_finite=False)
    span = float(values[0] / values[-1]) if values[-1] > 0 else 0.0
    return _orthonormal(np.ascontiguousarray(vectors[:, ::-1], np.float64)), span


def _resolved(basis: Matrix, images: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """Return the r leading singular vectors of S within a space, and their images: a Rayleigh-Ritz step in float64.

    Args:
        basis: Q, orthonormal, (n, k).
        images: S Q, (m, k).
        rank: r ≤ k.

    Returns:
        V, (n, r), and S V, (m, r): orthogonal, but not of unit length.
    """
    _, rotation = scipy.linalg.eigh(images.T @ images, driver="evd", check_finite=False)
    chosen = rotation[:, : -rank - 1 : -1]
    return basis @ chosen, images @ chosen


def _orthonormal(matrix: Matrix) -> Matrix:
    """Return an orthonormal basis of the columns, those of QR up to signs.

    By Cholesky factors of Gram matrices, twice (CholeskyQR2, Fukaya et al. 2014): products of large matrices, several
    times faster than Householder's QR, which serves where the columns are nearly dependent.
    """
    basis = matrix
    for _ in range(2):
        try:
            root = scipy.linalg.cholesky(basis.T @ basis, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            root = np.zeros((1, 1))
        pivots = np.diag(root)
        if pivots.min() <= _DEPENDENT * pivots.max():
            basis, _ = scipy.linalg.qr(matrix, mode="economic", check_finite=False)
            return np.asarray(basis)
        basis = scipy.linalg.solve_triangular(root, basis.T, lower=True, check_finite=False).T
    return np.ascontiguousarray(basis)
