"""The metric's pieces against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from curconvert.base.errors import InputError
from curconvert.factorization.measured import check_rank, measured
from curconvert.linalg.gram import least_squares, output_norm, ridged, right_inverse, solve_right, square_root
from support.matrices import correlated, dead, error_in, random_weight


def test_the_ridge_scales_the_diagonal() -> None:
    """H + λ diag(H): the diagonal grows by 1 + λ and nothing else changes."""
    gram = correlated(0).gram
    expected = gram.copy()
    expected[np.diag_indices(18)] *= 1.25
    np.testing.assert_allclose(ridged(gram, 0.25), expected, rtol=1e-14)


def test_the_square_root_gives_the_gram_matrix_back() -> None:
    """S Sᵀ = H."""
    gram = correlated(1).gram
    root = square_root(gram)
    np.testing.assert_allclose(root @ root.T, gram, atol=1e-13 * np.abs(gram).max())


def test_the_square_root_of_a_singular_gram_matrix_is_finite() -> None:
    """Dead features and fewer tokens than features, where Cholesky breaks down."""
    x = np.random.default_rng(0).standard_normal((5, 18))
    x[:, 4] = 0
    gram = x.T @ x
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.cholesky(gram)
    root = square_root(gram)
    np.testing.assert_allclose(root @ root.T, gram, atol=1e-12)
    assert np.abs(root[4]).max() < 1e-7


@pytest.mark.parametrize("rank", [0, 1, 6, 9])
def test_solving_on_the_right_is_the_least_norm_solution(rank: int) -> None:
    """N G⁺, with NumPy's pseudo-inverse, for singular G too."""
    rng = np.random.default_rng(rank)
    root, N = rng.standard_normal((9, rank)), rng.standard_normal((4, 9))
    gram = root @ root.T
    np.testing.assert_allclose(solve_right(N, gram), N @ np.linalg.pinv(gram, rcond=1e-10), atol=1e-8)


@pytest.mark.parametrize("distance", [1.0, 1e-3, 1e-5, 1e-7, 0.0])
@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_least_squares_are_exact_however_near_the_columns_are(distance: float, scale: float) -> None:
    """NumPy's residual, where normal equations serve and where they would lose digits; and the least-norm solution."""
    rng = np.random.default_rng(1)
    A, B = rng.standard_normal((40, 6)), rng.standard_normal((40, 3))
    A[:, 5] = A[:, 0] + distance * A[:, 5]
    A[:, 1] *= scale
    found, expected = least_squares(A, B), np.linalg.lstsq(A, B)[0]
    best = np.linalg.norm(A @ expected - B)
    assert np.linalg.norm(A @ found - B) <= best * (1 + 1e-10)
    if distance:
        np.testing.assert_allclose(found, expected, rtol=1e-6 if distance < 1e-4 else 1e-9)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-8)


@pytest.mark.parametrize("distance", [1.0, 1e-3, 1e-6])
def test_the_right_inverse_is_the_pseudo_inverse(distance: float) -> None:
    """R R⁺ = 1, with rows that are nearly dependent too."""
    R = np.random.default_rng(2).standard_normal((5, 30))
    R[4] = R[0] + distance * R[4]
    np.testing.assert_allclose(right_inverse(R), np.linalg.pinv(R), rtol=1e-7, atol=1e-9 / distance)


def test_the_output_norm_is_the_norm_of_the_outputs() -> None:
    """Root mean square of ‖M x‖ over the inputs that H was averaged over."""
    rng = np.random.default_rng(2)
    M, x = rng.standard_normal((7, 18)), rng.standard_normal((40, 18))
    expected = np.sqrt((np.linalg.norm(x @ M.T, axis=1) ** 2).mean())
    assert output_norm(M, x.T @ x / 40) == pytest.approx(expected, rel=1e-12)


def test_errors_are_those_of_the_stored_tensors() -> None:
    """Both relative errors, in the metric without a ridge."""
    weight, stats = random_weight(3), correlated(3)
    A, B = random_weight(4, 24, 5, torch.float16), random_weight(5, 5, 18, torch.float16)
    W = weight.numpy()
    error = W - A.double().numpy() @ B.double().numpy()
    found = measured("two_factor", {"A": A, "B": B}, 5, weight, stats)
    expected = error_in(stats.gram, error) / error_in(stats.gram, W)
    assert found.relative_output_error == pytest.approx(expected, rel=1e-6)
    assert found.relative_frobenius_error == pytest.approx(np.linalg.norm(error) / np.linalg.norm(W), rel=1e-12)


def test_stored_tensors_are_contiguous() -> None:
    """Other layouts write wrong bytes."""
    A, B = random_weight(0, 5, 24).T, random_weight(1, 18, 5).T
    found = measured("two_factor", {"A": A, "B": B}, 5, random_weight(2), dead(correlated(0), 1))
    assert all(tensor.is_contiguous() for tensor in found.tensors.values())


@pytest.mark.parametrize("rank", [-1, 0, 19])
def test_an_impossible_rank_is_refused(rank: int) -> None:
    """The message names the tensor and the range."""
    with pytest.raises(InputError, match=rf"x\.weight: rank {rank}: expected 1 to 18 for a matrix of 24 × 18"):
        check_rank("x.weight", (24, 18), rank)
