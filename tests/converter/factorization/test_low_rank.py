"""Each approximation reaches the least error of its own metric, which NumPy's full SVD gives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from curconvert.factorization.low_rank import asvd, fwsvd, plain, svd_llm
from support.matrices import EDGES, best_error, correlated, dead, edge_case, error_in, metric_of, random_weight

Matrix = NDArray[np.float64]
SHAPES = [(24, 18), (18, 24), (20, 20)]
FISHER = np.random.default_rng(9).uniform(0.1, 5, 64)

METHODS: dict[str, Callable[[Matrix, Matrix, int], tuple[Matrix, Matrix]]] = {
    "svd_llm": lambda W, H, r: svd_llm(W, metric_of(H), r),
    "asvd": lambda W, H, r: asvd(W, np.sqrt(np.diag(H)), r),
    "svd": lambda W, H, r: plain(W, r),
    "fwsvd": lambda W, H, r: fwsvd(W, FISHER[: len(W)], r),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 7, 18])
def test_svd_llm_has_the_least_output_error(shape: tuple[int, int], rank: int) -> None:
    """Eckart–Young in the metric of H."""
    W, H = random_weight(1, *shape).numpy(), correlated(1, shape[1]).gram
    A, B = svd_llm(W, metric_of(H), rank)
    assert error_in(H, W - A @ B) == pytest.approx(best_error(W, H, rank), rel=1e-9, abs=1e-7 * error_in(H, W))


@pytest.mark.parametrize("shape", SHAPES)
def test_svd_llm_equals_the_published_formula(shape: tuple[int, int]) -> None:
    """P_r Σ_r Q_rᵀ S⁻¹ with S from Cholesky."""
    W, H = random_weight(2, *shape).numpy(), correlated(2, shape[1]).gram
    root = np.linalg.cholesky(H)
    left, sigma, right = np.linalg.svd(W @ root, full_matrices=False)
    expected = left[:, :6] * sigma[:6] @ right[:6] @ np.linalg.inv(root)
    A, B = svd_llm(W, metric_of(H), 6)
    np.testing.assert_allclose(A @ B, expected, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_asvd_equals_the_published_formula(shape: tuple[int, int]) -> None:
    """The truncated SVD of W diag(a)^½, scaled back."""
    W, a = random_weight(3, *shape).numpy(), np.random.default_rng(3).uniform(0.1, 9, shape[1])
    left, sigma, right = np.linalg.svd(W * np.sqrt(a), full_matrices=False)
    A, B = asvd(W, a, 6)
    np.testing.assert_allclose(A @ B, left[:, :6] * sigma[:6] @ right[:6] / np.sqrt(a), atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_plain_equals_the_truncated_svd(shape: tuple[int, int]) -> None:
    """No statistics at all."""
    W = random_weight(4, *shape).numpy()
    left, sigma, right = np.linalg.svd(W, full_matrices=False)
    A, B = plain(W, 6)
    np.testing.assert_allclose(A @ B, left[:, :6] * sigma[:6] @ right[:6], atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_fwsvd_equals_the_published_formula(shape: tuple[int, int]) -> None:
    """The truncated SVD of diag(f)^½ W, scaled back."""
    W, f = random_weight(5, *shape).numpy(), FISHER[: shape[0], None]
    left, sigma, right = np.linalg.svd(np.sqrt(f) * W, full_matrices=False)
    A, B = fwsvd(W, f[:, 0], 6)
    np.testing.assert_allclose(A @ B, left[:, :6] * sigma[:6] @ right[:6] / np.sqrt(f), atol=1e-9)


def test_fwsvd_takes_rows_without_information() -> None:
    """A row that the loss does not depend on is finite, where scaling back would divide by zero."""
    f = FISHER[:24].copy()
    f[5] = 0
    assert np.isfinite(fwsvd(random_weight(6).numpy(), f, 6)[0]).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("shape", [(24, 18), (18, 24)])
def test_edge_cases_are_finite_and_no_worse_than_nothing(method: str, edge: str, shape: tuple[int, int]) -> None:
    """Singular weights and metrics: finite factors of the right shape, an error of at most ‖W‖."""
    weight, stats = edge_case(edge, *shape)
    W = weight.numpy()
    A, B = METHODS[method](W, stats.gram, 5)
    assert (A.shape, B.shape) == ((shape[0], 5), (5, shape[1]))
    assert np.isfinite(A).all()
    assert np.isfinite(B).all()
    assert error_in(stats.gram, W - A @ B) <= error_in(stats.gram, W) * (1 + 1e-9) + 1e-9 or method == "svd"
    assert np.linalg.norm(W - A @ B) <= np.linalg.norm(W) * (1 + 1e-9)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(24, 18), (18, 24)])
def test_a_low_rank_weight_is_reproduced(method: str, shape: tuple[int, int]) -> None:
    """Rank 2 is exact at rank 2, and beyond it."""
    weight, stats = edge_case("rank-2 weight", *shape)
    for rank in (2, 5):
        A, B = METHODS[method](weight.numpy(), stats.gram, rank)
        np.testing.assert_allclose(A @ B, weight.numpy(), atol=1e-7)


def test_a_dead_input_costs_the_others_nothing() -> None:
    """The error on live features equals that of the layer without the dead ones."""
    W, stats = random_weight(7).numpy(), correlated(7)
    live = np.arange(18) > 3
    H = dead(stats, 0, 1, 2, 3).gram
    A, B = svd_llm(W, metric_of(H), 6)
    assert error_in(H, W - A @ B) == pytest.approx(best_error(W[:, live], H[np.ix_(live, live)], 6), rel=1e-9)


@pytest.mark.parametrize("method", ["svd_llm", "asvd", "svd"])
def test_the_left_factor_is_orthonormal(method: str) -> None:
    """Even where the spectrum spans more than the Gram matrix resolves."""
    W = random_weight(8, 40, 18).numpy() * np.geomspace(1, 1e-14, 18)
    A, _ = METHODS[method](W, correlated(8).gram, 18)
    np.testing.assert_allclose(A.T @ A, np.eye(18), atol=1e-13)
