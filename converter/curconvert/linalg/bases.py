"""Computes leading singular vectors of an importance matrix: exactly, or from a Gram matrix or block Krylov space."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray

from curconvert.base.types import Matrix
from curconvert.linalg.chunked import ChunkedMatrix, product

_STEPS = 5  # applications of S Sᵀ; docs/benchmarks/experiments.md compares DEIM's points with those of a full SVD
_DEPENDENT = 1e-6  # ratio of pivots below which a second pass of CholeskyQR does not correct the first
_EXTRA = 16  # columns of a block beyond the rank
_SINGLE_RANGE = 1e-5  # range of a Gram matrix's eigenvalues that float32 resolves
_GRAM_SIDE = 1024  # up to this size, eigenvectors of a Gram matrix take no longer than a Krylov space


def exact_bases(matrix: Matrix, rank: int) -> tuple[Matrix, Matrix, float]:
    """Return r leading singular vectors of each side by a full SVD, and σ_{r+1}.

    Args:
        matrix: S, (m, n).
        rank: 1 ≤ r ≤ min(m, n).

    Returns:
        (m, r) and (n, r), leading first; σ_{r+1}, or 0 if r is the largest rank.
    """
    left, sigma, right = scipy.linalg.svd(matrix, full_matrices=False, check_finite=False)
    following = float(sigma[rank]) if rank < len(sigma) else 0.0
    return np.ascontiguousarray(left[:, :rank]), np.ascontiguousarray(right[:rank].T), following


def leading_bases(matrix: ChunkedMatrix, rank: int, rng: np.random.Generator) -> tuple[Matrix, Matrix]:
    """Return r leading singular vectors of each side without a full SVD.

    They come from eigenvectors of the smaller Gram matrix, exact to about 1e-5, if these are cheap or a Krylov space
    would not be smaller; otherwise from a Krylov space.

    Args:
        matrix: S, (m, n).
        rank: 1 ≤ r ≤ min(m, n).
        rng: Used by `krylov_bases`.

    Returns:
        (m, r) and (n, r), leading first, orthonormal.
    """
    if krylov_size(matrix.shape, rank):
        return krylov_bases(matrix, rank, rng)
    return _gram_bases(matrix, rank)


def krylov_size(shape: tuple[int, int], rank: int) -> int:
    """Return the dimension of the Krylov space for a matrix, or 0 if its Gram matrix is used instead."""
    size = (1 + _STEPS) * (rank + _EXTRA)
    return size if _GRAM_SIDE < min(shape) > size else 0


def krylov_bases(matrix: ChunkedMatrix, rank: int, rng: np.random.Generator) -> tuple[Matrix, Matrix]:
    """Return r leading singular vectors of each side from a block Krylov space (Musco & Musco, arXiv 1504.05477).

    The space is spanned by `S Ω, (S Sᵀ) S Ω, …`, Ω Gaussian. Subspace iteration takes only the last of these. All of
    them together resolve single vectors of a slowly decaying spectrum, which DEIM needs. Products with S are float32:
    they take half the time, and a copy of twice a 16-bit weight's size.

    Args:
        matrix: S, (m, n).
        rank: r, with `(1 + _STEPS)(r + _EXTRA) ≤ min(m, n)`.
        rng: For Ω.

    Returns:
        (m, r) and (n, r), leading first, orthonormal.
    """
    width, (m, n) = rank + _EXTRA, matrix.shape
    size = (1 + _STEPS) * width
    S = matrix.single()
    if m > n:  # build the space on the short side, where projections on it are cheap
        S = S.T
    space = np.empty((S.shape[0], size))
    images = torch.empty((size, S.shape[1]), dtype=torch.float32, device=S.device)
    block = rng.standard_normal((S.shape[1], width)).astype(np.float32)
    for start in range(0, size, width):
        part, known = slice(start, start + width), space[:, :start]
        found = product(S, torch.from_numpy(block).to(S.device)).double().cpu().numpy()
        # If there is no new direction, QR would repeat the space: this small noise adds a harmless new one.
        noise = np.finfo(np.float32).eps * (np.linalg.norm(found) or 1.0) / np.sqrt(found.size)
        found += noise * rng.standard_normal(found.shape)
        for _ in range(2):
            found = _orthonormal(found - known @ (known.T @ found))
        space[:, part] = found
        images[part] = product(torch.from_numpy(found.T.astype(np.float32)).to(S.device), S)
        block = images[part].T.cpu().numpy()
    # S on this space is Q (Qᵀ S). Its Gram matrix is accurate enough: its errors are far below the last direction.
    nearly, _ = _leading(product(images, images.T).cpu().numpy(), rank + _EXTRA)
    placed = torch.from_numpy(nearly.astype(np.float32)).to(S.device)
    leading, found = _resolved(nearly, product(images.T, placed).double().cpu().numpy(), rank)
    left, right = space @ leading, _orthonormal(found)
    return (right, left) if m > n else (left, right)


def _gram_bases(matrix: ChunkedMatrix, rank: int) -> tuple[Matrix, Matrix]:
    """Return the leading bases from the smaller one of the matrix's two Gram matrices.

    Eigenvectors are computed in float32, which takes half the time. Single ones are inexact if their eigenvalues are
    close, but their common span is accurate. A Rayleigh-Ritz step finds the vectors in this span.
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
    """Return the leading eigenvectors of a symmetric matrix, (n, size), and their smallest eigenvalue over the largest.

    They are computed in the matrix's precision, and orthonormalized in float64.
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
    """Return an orthonormal basis of the columns: Q of QR, up to signs.

    It uses Cholesky factors of Gram matrices, twice (CholeskyQR2, Fukaya et al. 2014), which is several times faster
    than Householder's QR. If the columns are nearly dependent, it uses Householder's QR.
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
