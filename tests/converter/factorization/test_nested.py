"""Approximations within each other: a smaller one made of a larger one is the one that statistics would give."""

from __future__ import annotations

import numpy as np
import pytest

from curconvert.factorization.nested import eliminated, elimination, nested_basis, packed, truncated, unpacked
from curconvert.factorization.two_sided import two_sided

M, N = 12, 20


def positive(size: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((3 * size, size)) * np.geomspace(1, 0.05, size)
    return np.asarray(rows.T @ rows / len(rows))


@pytest.mark.parametrize(("shape", "larger"), [((M, N), M), ((M, N), 9), ((N, M), M)])
def test_a_truncation_needs_the_basis_alone(shape: tuple[int, int], larger: int) -> None:
    """Of W itself, or of a larger best approximation, it gives the smaller best one; by an SVD of F^½ W H^½."""
    m, n = shape
    weight, gram, fisher = np.random.default_rng(0).standard_normal(shape), positive(n, 1), positive(m, 2)
    values, vectors = np.linalg.eigh(fisher)
    left, right = vectors * np.sqrt(values) @ vectors.T, np.linalg.cholesky(gram)
    P, sigma, Q = np.linalg.svd(left @ weight @ right, full_matrices=False)

    def best(rank: int) -> np.ndarray:
        weighted = (P[:, :rank] * sigma[:rank]) @ Q[:rank]
        return np.asarray(np.linalg.solve(left, weighted) @ np.linalg.inv(right))

    basis = nested_basis(two_sided(weight, gram, fisher), larger)
    np.testing.assert_allclose(np.linalg.norm(basis, axis=0), 1)
    for rank in (1, 4, larger):
        A, B = truncated(best(larger), basis, rank)
        np.testing.assert_allclose(A.T @ A, np.eye(rank), atol=1e-12)
        np.testing.assert_allclose(A @ B, best(rank), atol=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 0.03])
def test_an_elimination_serves_every_number_of_neurons(ridge: float) -> None:
    """From all neurons, or from some, the refit is that of the normal equations; a neuron that never fires is none."""
    gram, weight = positive(N, 3), np.random.default_rng(4).standard_normal((M, N))
    gram[5] = gram[:, 5] = 0
    order = np.random.default_rng(5).permutation(N).astype(np.int32)
    ridged = gram + max(ridge, 1e-10) * np.diag(np.diag(gram))
    ridged[5, 5] = 1.0

    def refitted(count: int) -> np.ndarray:
        kept, dropped = order[:count], order[count:]
        share = np.linalg.solve(ridged[np.ix_(kept, kept)], gram[np.ix_(kept, dropped)])
        return np.asarray(weight[:, kept] + weight[:, dropped] @ share.T)

    factor = elimination(gram, order, ridge)
    np.testing.assert_array_equal(np.diag(factor), 1)
    np.testing.assert_array_equal(np.triu(factor, 1), 0)
    for larger in (N, 13):
        for count in (1, 7, larger):
            found = eliminated(refitted(larger), elimination(gram, order[:larger], ridge), count)
            np.testing.assert_allclose(found, refitted(count), rtol=1e-6, atol=1e-7)


def test_a_leading_part_is_a_leading_part_of_what_is_stored() -> None:
    """So a smaller artifact could keep the first numbers."""
    factor = elimination(positive(6, 0), np.arange(6, dtype=np.int32), 0.1)
    values = packed(factor)
    assert values.shape == (15,)
    np.testing.assert_array_equal(unpacked(values, 6), factor)
    np.testing.assert_array_equal(unpacked(values, 4), factor[:4, :4])
