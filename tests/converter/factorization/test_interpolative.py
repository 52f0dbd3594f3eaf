"""Rows, coefficients and order of the interpolative form, in both bases, against least squares and full SVDs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.linalg
import torch
from numpy.typing import NDArray

from curconvert.base.errors import InputError
from curconvert.base.forms import Basis
from curconvert.factorization.interpolative import factorize_rows, factorize_subspace, spanning_rows
from curconvert.factorization.low_rank import svd_llm
from curconvert.factorization.types import Factorization, Problem
from curconvert.linalg.chunked import ChunkedMatrix
from curconvert.linalg.metrics import FullMetric
from curconvert.linalg.statistics import InputStatistics
from curconvert.selection.indices import leading_rows
from support.matrices import EDGES, best_error, correlated, edge_case, error_in, random_weight

BASES: tuple[Basis, ...] = ("rows", "subspace")
SHAPES = [(24, 18), (18, 24), (20, 20)]


def factorized(
    weight: torch.Tensor, statistics: InputStatistics, rank: int, basis: Basis, ridge: float, dtype: torch.dtype
) -> Factorization:
    problem = Problem("x.weight", weight, statistics, rank, dtype, "interpolative")
    return factorize_rows(problem, ridge, seed=0) if basis == "rows" else factorize_subspace(problem, ridge)


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_the_pivots_of_qr_of_the_weighted_rows(shape: tuple[int, int]) -> None:
    """Pivoted Cholesky of W H Wᵀ chooses what column-pivoted QR of (W S)ᵀ does, in its order."""
    weight, metric = random_weight(0, *shape), FullMetric(correlated(0, shape[1]), 0.0)
    root = np.linalg.cholesky(metric.statistics.gram)
    _, pivots = scipy.linalg.qr((weight.double().numpy() @ root).T, mode="r", pivoting=True)
    found = leading_rows(ChunkedMatrix(weight), metric, 9, np.random.default_rng(0))
    assert found.tolist() == pivots[:9].tolist()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_coefficients_are_least_squares_for_the_deployed_rows(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """T minimizes ‖(W' − T R) H^½‖ for R as it was rounded, in H + λ diag(H)."""
    weight, stats = random_weight(1, *shape), correlated(1, shape[1])
    found = factorized(weight, stats, 7, "rows", 0.1, dtype)
    root = np.linalg.cholesky(stats.gram + 0.1 * np.diag(np.diag(stats.gram)))
    others = [i for i in range(shape[0]) if i not in found.tensors["rows"].tolist()]
    R = found.tensors["R"].double().numpy()
    expected = np.linalg.lstsq((R @ root).T, (weight.numpy()[others] @ root).T, rcond=None)[0].T
    torch.testing.assert_close(found.tensors["T"], torch.from_numpy(expected).to(dtype), rtol=2e-2, atol=1e-8)
    if dtype == torch.float64:
        np.testing.assert_allclose(found.tensors["T"].numpy(), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("floor", [1e-4, 1e-8, 1e-16])
def test_coefficients_survive_a_weight_that_is_nearly_of_low_rank(floor: float) -> None:
    """Within 1e-5 of the output of what NumPy's least squares reaches with the same rows."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal((80, 40)) * np.geomspace(1, floor, 40) @ rng.standard_normal((40, 40))
    stats = correlated(0, 40)
    found = factorized(torch.from_numpy(W), stats, 30, "rows", 0.0, torch.float64)
    outputs = W @ np.linalg.cholesky(stats.gram)
    chosen = outputs[found.tensors["rows"].tolist()]
    fit = np.linalg.lstsq(chosen.T, outputs.T, rcond=None)[0].T
    assert found.relative_output_error <= np.linalg.norm(outputs - fit @ chosen) / np.linalg.norm(outputs) + 1e-5


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_r_holds_rows_of_the_source_bit_for_bit(stored: torch.dtype, dtype: torch.dtype) -> None:
    """With basis `rows` nothing but the cast to the deployed dtype happens to them."""
    weight = random_weight(2, dtype=stored)
    found = factorized(weight, correlated(2), 7, "rows", 1e-2, dtype)
    expected = weight.to(dtype)[found.tensors["rows"].tolist()]
    assert torch.equal(found.tensors["R"].view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 7, 18])
def test_subspace_storage_is_lossless(shape: tuple[int, int], rank: int) -> None:
    """The stored product is the SVD-LLM optimum itself."""
    weight, stats = random_weight(3, *shape), correlated(3, shape[1])
    found = factorized(weight, stats, rank, "subspace", 0.0, torch.float64)
    A, B = svd_llm(weight.numpy(), FullMetric(stats, 0.0), rank)
    np.testing.assert_allclose(found.product().numpy(), A @ B, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_subspace_has_the_least_output_error(shape: tuple[int, int]) -> None:
    """Eckart–Young's, by NumPy, to 1e-6."""
    weight, stats = random_weight(4, *shape), correlated(4, shape[1])
    W, H = weight.numpy(), stats.gram
    found = factorized(weight, stats, 7, "subspace", 0.0, torch.float64)
    assert found.relative_output_error == pytest.approx(best_error(W, H, 7) / error_in(H, W), rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_real_rows_cost_a_little_and_random_rows_more(seed: int) -> None:
    """Optimum ≤ greedy rows ≤ the mean of random rows, all with their best coefficients."""
    weight, stats = random_weight(seed), correlated(seed)
    W, H = weight.numpy(), stats.gram
    best, rows = (
        factorized(weight, stats, 7, basis, 0.0, torch.float64).relative_output_error for basis in ("subspace", "rows")
    )
    root, rng = np.linalg.cholesky(H), np.random.default_rng(seed)
    outputs = W @ root
    drawn = []
    for _ in range(20):
        chosen = outputs[rng.permutation(24)[:7]]
        fit = np.linalg.lstsq(chosen.T, outputs.T, rcond=None)[0].T
        drawn.append(np.linalg.norm(outputs - fit @ chosen) / np.linalg.norm(outputs))
    assert best <= rows <= np.mean(drawn)


@pytest.mark.parametrize("basis", BASES)
def test_order_puts_every_output_in_its_place(basis: Basis) -> None:
    """order[rows[k]] = k, and the others follow in ascending order."""
    found = factorized(random_weight(5), correlated(5), 7, basis, 1e-2, torch.float32)
    rows, order = found.tensors["rows"].tolist(), found.tensors["order"].tolist()
    assert [order[row] for row in rows] == list(range(7))
    assert [order[i] for i in range(24) if i not in rows] == list(range(7, 24))


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_have_the_deployed_dtype_and_size(basis: Basis, dtype: torch.dtype) -> None:
    """R (r, n) and T (m − r, r): r(m + n − r) numbers; int32 indices."""
    found = factorized(random_weight(6), correlated(6), 7, basis, 1e-2, dtype)
    assert (found.form, found.rank, found.basis) == ("interpolative", 7, basis)
    assert {suffix: (tensor.dtype, tuple(tensor.shape)) for suffix, tensor in found.tensors.items()} == {
        "R": (dtype, (7, 18)),
        "T": (dtype, (17, 7)),
        "rows": (torch.int32, (7,)),
        "order": (torch.int32, (24,)),
    }
    assert found.tensors["R"].numel() + found.tensors["T"].numel() == 7 * (24 + 18 - 7)


@pytest.mark.parametrize("basis", BASES)
def test_rounding_adds_no_more_than_the_dtype_costs(basis: Basis) -> None:
    """The float16 factors' error is the float64 ones' up to float16's accuracy."""
    exact, half = (
        factorized(random_weight(7), correlated(7), 7, basis, 1e-2, dtype) for dtype in (torch.float64, torch.float16)
    )
    assert half.relative_output_error == pytest.approx(exact.relative_output_error, abs=1e-3)


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("shape", [(18, 24), (18, 18), (24, 18)])
def test_full_rank_is_exact(basis: Basis, shape: tuple[int, int]) -> None:
    """At r = min(m, n) nothing is lost, and at r = m nothing is left for T."""
    weight, stats = random_weight(8, *shape), correlated(8, shape[1])
    found = factorized(weight, stats, 18, basis, 0.0, torch.float64)
    assert found.tensors["T"].shape == (shape[0] - 18, 18)
    assert found.relative_output_error < 1e-7


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("shape", [(24, 18), (18, 24)])
def test_edge_cases_are_finite_in_half_precision(basis: Basis, edge: str, shape: tuple[int, int]) -> None:
    """Singular weights and inputs: distinct rows, finite factors, an error of at most ‖W H^½‖."""
    weight, stats = edge_case(edge, *shape)
    for rank, ridge in itertools.product((1, 5, 18), (0.0, 1e-2)):
        found = factorized(weight, stats, rank, basis, ridge, torch.float16)
        assert all(torch.isfinite(tensor).all() for tensor in found.tensors.values())
        assert len(set(found.tensors["rows"].tolist())) == rank
        assert sorted(found.tensors["order"].tolist()) == list(range(shape[0]))
        assert found.relative_output_error <= 1 + 1e-3


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("edge", ["constant weight", "rank-2 weight", "zero rows", "repeated rows"])
def test_weights_of_low_rank_are_reproduced(basis: Basis, edge: str) -> None:
    """At or above its rank a matrix is exact."""
    weight, stats = edge_case(edge)
    found = factorized(weight, stats, 5, basis, 1e-2, torch.float64)
    assert found.relative_output_error < 1e-6


def badly_pivoted(seed: int, r: int = 12, m: int = 412) -> NDArray[np.float64]:
    """An orthonormal basis in which pivoted QR follows Kahan's matrix into ill-conditioned rows."""
    cosine, sine = np.cos(1.1), np.sin(1.1)
    kahan = sine ** np.arange(r)[:, None] * (np.eye(r) - cosine * np.triu(np.ones((r, r)), 1)) * 0.98 ** np.arange(r)
    kahan *= 0.99 / np.linalg.norm(kahan, 2)
    spread = np.linalg.qr(np.random.default_rng(seed).standard_normal((m - r, r)))[0]
    return np.concatenate([kahan.T, spread @ np.linalg.cholesky(np.eye(r) - kahan @ kahan.T).T])


@pytest.mark.parametrize("seed", range(4))
def test_coefficients_of_a_subspace_are_bounded(seed: int) -> None:
    """No entry of T exceeds 2, where pivoted QR alone leaves larger ones."""
    basis = badly_pivoted(seed)
    _, pivots = scipy.linalg.qr(basis.T, mode="r", pivoting=True)
    assert np.abs(basis[pivots[12:]] @ np.linalg.inv(basis[pivots[:12]])).max() > 3
    rows, T = spanning_rows(basis)
    assert len(set(rows.tolist())) == 12
    np.testing.assert_allclose(T @ basis[rows], np.delete(basis, rows, axis=0), atol=1e-12)
    assert np.abs(T).max() <= 2


@pytest.mark.parametrize("basis", BASES)
def test_a_second_run_gives_the_same_bytes(basis: Basis) -> None:
    """Nothing is random."""
    first, second = (factorized(random_weight(9), correlated(9), 7, basis, 1e-2, torch.float32) for _ in range(2))
    assert all(torch.equal(tensor, second.tensors[suffix]) for suffix, tensor in first.tensors.items())


@pytest.mark.parametrize("basis", BASES)
def test_an_impossible_rank_is_refused(basis: Basis) -> None:
    """Before LAPACK sees it."""
    with pytest.raises(InputError, match=r"x\.weight: rank 19"):
        factorized(random_weight(0), correlated(0), 19, basis, 1e-2, torch.float32)
