"""The approximation that weighs inputs and outputs, against a truncated SVD of the weighted matrix."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from curconvert.factorization.two_sided import damped, two_sided

Matrix = NDArray[np.float64]


def positive(size: int, rng: np.random.Generator) -> Matrix:
    """Return a positive definite matrix of mixed scales."""
    factor = rng.standard_normal((size, 2 * size)) * np.geomspace(1, 30, size)[:, None]
    return np.asarray(factor @ factor.T / size)


def root(matrix: Matrix) -> Matrix:
    """Return the symmetric square root."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(values)) @ vectors.T)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
@pytest.mark.parametrize("rank", [1, 5, 11])
def test_it_is_the_best_in_both_metrics(shape: tuple[int, int], rank: int) -> None:
    """`F^½ Ŵ H^½` is the truncated SVD of `F^½ W H^½`, and its error the discarded singular values."""
    rng = np.random.default_rng(shape[0] * 100 + rank)
    weight, gram, fisher = rng.standard_normal(shape), positive(shape[1], rng), positive(shape[0], rng)
    basis, rest = two_sided(weight, gram, fisher).factors(rank)
    left, sigma, right = np.linalg.svd(root(fisher) @ weight @ root(gram), full_matrices=False)
    expected = (left[:, :rank] * sigma[:rank]) @ right[:rank]
    np.testing.assert_allclose(root(fisher) @ basis @ rest @ root(gram), expected, atol=1e-8 * sigma[0])
    np.testing.assert_allclose(basis.T @ basis, np.eye(rank), atol=1e-12)
    error = weight - basis @ rest
    assert np.trace(fisher @ error @ gram @ error.T) == pytest.approx((sigma[rank:] ** 2).sum(), rel=1e-6)


def test_costs_of_all_ranks_are_those_of_each() -> None:
    """The running sum gives what multiplying out gives."""
    rng = np.random.default_rng(0)
    weight, gram, fisher = rng.standard_normal((10, 14)), positive(14, rng), positive(10, rng)
    inputs, gradients = (rng.standard_normal((50, size)).astype(np.float32) for size in (14, 10))
    best = two_sided(weight, gram, fisher)
    costs = best.costs(inputs, gradients)
    assert costs.shape == (11,)
    for rank in range(1, 11):
        basis, rest = best.factors(rank)
        moved = np.einsum("ti,ij,tj->t", gradients, weight - basis @ rest, inputs)
        assert costs[rank] == pytest.approx(0.5 * np.mean(moved**2), rel=1e-4, abs=1e-8)


def test_nothing_depends_on_the_layer() -> None:
    """Without gradients any approximation is as good: the input's metric alone decides."""
    rng = np.random.default_rng(1)
    weight, gram = rng.standard_normal((8, 8)), positive(8, rng)
    basis, rest = two_sided(weight, gram, damped(np.zeros((8, 8)), 0.1)).factors(3)
    left, sigma, right = np.linalg.svd(weight @ root(gram))
    np.testing.assert_allclose(basis @ rest @ root(gram), (left[:, :3] * sigma[:3]) @ right[:3], atol=1e-8 * sigma[0])
