"""Singular vectors from a block Krylov space: as good as exact ones, orthonormal on degenerate matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from curconvert.linalg import bases
from curconvert.linalg.bases import exact_bases, krylov_bases, krylov_size, leading_bases
from curconvert.linalg.chunked import ChunkedMatrix
from curconvert.selection.indices import deim

Matrix = NDArray[np.float64]


def slowly_decaying(seed: int, m: int, n: int) -> Matrix:
    """A matrix whose singular values fall as those of real importance matrices do: one large, then about 1/√i."""
    rng = np.random.default_rng(seed)
    k = min(m, n)
    left, right = (np.linalg.qr(rng.standard_normal((size, k)))[0] for size in (m, n))
    sigma = np.arange(1, k + 1) ** -0.5
    sigma[0] = 30.0
    return np.asarray(left * sigma @ right.T)


def krylov(matrix: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    return krylov_bases(ChunkedMatrix(torch.from_numpy(matrix)), rank, np.random.default_rng(0))


@pytest.mark.parametrize("shape", [(700, 500), (500, 700)])
def test_deim_finds_the_points_that_it_finds_in_a_full_svd(shape: tuple[int, int]) -> None:
    """At least 95 of 100, on both sides, although single singular values lie a percent apart."""
    matrix, rank = slowly_decaying(0, *shape), 40
    left, right, _ = exact_bases(matrix, rank)
    for exact, fast in zip((left, right), krylov(matrix, rank), strict=True):
        same = set(deim(exact).tolist()) & set(deim(fast).tolist())
        assert len(same) >= 0.95 * rank


def test_fewer_steps_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of steps matters: with one, as in an ordinary randomized SVD, DEIM finds other points."""
    monkeypatch.setattr(bases, "_STEPS", 1)
    matrix, rank = slowly_decaying(0, 700, 500), 40
    left, _, _ = exact_bases(matrix, rank)
    found, _ = krylov(matrix, rank)
    assert len(set(deim(left).tolist()) & set(deim(found).tolist())) < 0.95 * rank


@pytest.mark.parametrize("kind", ["zero", "rank one", "rank twenty", "identity", "constant"])
def test_bases_are_orthonormal_whatever_the_matrix(kind: str) -> None:
    """Where the Krylov space closes early, too."""
    rng = np.random.default_rng(1)
    matrix = {
        "zero": np.zeros((220, 200)),
        "rank one": np.outer(rng.standard_normal(220), rng.standard_normal(200)),
        "rank twenty": rng.standard_normal((220, 20)) @ rng.standard_normal((20, 200)),
        "identity": np.eye(220, 200),
        "constant": np.ones((220, 200)),
    }[kind]
    for basis in krylov(matrix, 12):
        np.testing.assert_allclose(basis.T @ basis, np.eye(12), atol=1e-9)
    left, _ = krylov(matrix, 12)
    best = np.sqrt((np.linalg.svd(matrix, compute_uv=False)[12:] ** 2).sum())
    assert np.linalg.norm(matrix - left @ (left.T @ matrix)) <= 1.05 * best + 1e-6 * np.linalg.norm(matrix)


@pytest.mark.parametrize(
    ("shape", "rank", "size"), [((4096, 14336), 256, 1632), ((4096, 1024), 16, 0), ((2048, 2048), 400, 0)]
)
def test_a_krylov_space_is_taken_where_it_is_smaller_than_a_large_matrix(
    shape: tuple[int, int], rank: int, size: int
) -> None:
    """Six blocks of the rank and sixteen columns more; otherwise the Gram matrix's eigenvectors serve."""
    assert krylov_size(shape, rank) == krylov_size(shape[::-1], rank) == size


@pytest.mark.parametrize("shape", [(90, 60), (60, 90)])
def test_small_matrices_have_the_singular_vectors_of_a_full_svd(shape: tuple[int, int]) -> None:
    """Up to their signs and float32's rounding of the Gram matrix: all of DEIM's points are the same."""
    matrix = slowly_decaying(1, *shape)
    left, right, _ = exact_bases(matrix, 20)
    for exact, fast in zip(
        (left, right), leading_bases(ChunkedMatrix(torch.from_numpy(matrix)), 20, np.random.default_rng(0)), strict=True
    ):
        np.testing.assert_allclose(np.abs(exact.T @ fast), np.eye(20), atol=1e-5)
        assert deim(exact).tolist() == deim(fast).tolist()
