"""The stored pair: which approximation it holds, its scales, its dtype."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from curconvert.base.errors import InputError
from curconvert.factorization.two_factor import balanced
from curconvert.factorization.types import Factorization, Problem
from curconvert.linalg.statistics import InputStatistics
from curconvert.methods.core.registry import method_named
from curconvert.methods.core.two_factor import TwoFactor
from curconvert.options.settings import Settings
from support.matrices import EDGES, best_error, correlated, edge_case, error_in, random_weight

FISHER = np.random.default_rng(9).uniform(0.1, 5, 24)
METHODS = ("svd-llm", "asvd", "fwsvd", "svd")


def factorized(
    weight: torch.Tensor, statistics: InputStatistics, rank: int, name: str, ridge: float, dtype: torch.dtype
) -> Factorization:
    method = method_named(name).of({"rank": rank})
    assert isinstance(method, TwoFactor)
    problem = Problem("x.weight", weight, statistics, rank, dtype, "two_factor")
    return method.factorize(problem, Settings(ridge=ridge), FISHER if name == "fwsvd" else None)


def test_svd_llm_reports_the_least_output_error() -> None:
    """Relative to the norm of the layer's output."""
    weight, stats = random_weight(0), correlated(0)
    W, H = weight.numpy(), stats.gram
    found = factorized(weight, stats, 6, "svd-llm", 0.0, torch.float64)
    assert found.relative_output_error == pytest.approx(best_error(W, H, 6) / error_in(H, W), rel=1e-6)


def test_the_ridge_moves_the_optimum_to_the_regularized_metric() -> None:
    """The product is the best in H + λ diag(H)."""
    weight, stats = random_weight(1), correlated(1)
    W, H = weight.numpy(), stats.gram + 0.5 * np.diag(np.diag(stats.gram))
    found = factorized(weight, stats, 6, "svd-llm", 0.5, torch.float64)
    assert error_in(H, W - found.product().numpy()) == pytest.approx(best_error(W, H, 6), rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_each_approximation_is_the_best_in_its_own_measure(seed: int) -> None:
    """SVD-LLM has the least output error of the three, the plain SVD the least Frobenius error."""
    found = {
        method: factorized(random_weight(seed), correlated(seed), 6, method, 0.0, torch.float64)
        for method in ("svd-llm", "asvd", "svd")
    }
    assert min(found, key=lambda key: found[key].relative_output_error) == "svd-llm"
    assert min(found, key=lambda key: found[key].relative_frobenius_error) == "svd"


def test_fwsvd_has_the_least_error_weighted_by_the_rows_information() -> None:
    """What a generic SVD of diag(f)^½ W discards; no rank-6 matrix does better."""
    weight, root = random_weight(8), np.sqrt(FISHER)[:, None]
    found = factorized(weight, correlated(8), 6, "fwsvd", 1e-2, torch.float64)
    error = np.linalg.norm(root * (weight.numpy() - found.product().numpy()))
    assert error == pytest.approx(np.linalg.norm(np.linalg.svd(root * weight.numpy(), compute_uv=False)[6:]), rel=1e-9)
    plain = factorized(weight, correlated(8), 6, "svd", 1e-2, torch.float64)
    assert error < 0.99 * np.linalg.norm(root * (weight.numpy() - plain.product().numpy()))


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_balancing_keeps_the_product_and_evens_the_norms(scale: float) -> None:
    """Powers of two: bit-equal product, norms of each pair within a factor of two."""
    A, B = random_weight(2, 24, 6).numpy() * scale, random_weight(3, 6, 18).numpy()
    left, right = balanced(A, B)
    for k in range(6):
        assert np.array_equal(np.outer(left[:, k], right[k]), np.outer(A[:, k], B[k]))
    ratio = np.linalg.norm(left, axis=0) / np.linalg.norm(right, axis=1)
    assert (np.abs(np.log2(ratio)) <= 1).all()


def test_large_weights_fit_half_precision() -> None:
    """Entries near float16's largest value are stored as finite factors with float16's accuracy."""
    weight = torch.full((24, 18), 6e4, dtype=torch.float16)
    found = factorized(weight, correlated(4), 2, "svd-llm", 0.0, torch.float16)
    assert found.relative_frobenius_error < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_factors_have_the_deployed_dtype_and_size(method: str, dtype: torch.dtype) -> None:
    """A (m, r) and B (r, n), nothing else."""
    weight = random_weight(5, dtype=torch.bfloat16)
    found = factorized(weight, correlated(5), 6, method, 1e-2, dtype)
    assert (found.form, found.rank, found.basis) == ("two_factor", 6, None)
    assert {suffix: (tensor.dtype, tuple(tensor.shape)) for suffix, tensor in found.tensors.items()} == {
        "A": (dtype, (24, 6)),
        "B": (dtype, (6, 18)),
    }


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("method", METHODS)
def test_edge_cases_are_finite_in_half_precision(method: str, edge: str) -> None:
    """Singular weights and inputs, at full rank too."""
    weight, stats = edge_case(edge)
    for rank in (5, 18):
        found = factorized(weight, stats, rank, method, 1e-2, torch.float16)
        assert all(torch.isfinite(tensor).all() for tensor in found.tensors.values())
        assert np.isfinite(found.relative_output_error)


def test_a_second_run_gives_the_same_bytes() -> None:
    """Nothing is random."""
    first, second = (factorized(random_weight(6), correlated(6), 6, "svd-llm", 1e-2, torch.float32) for _ in range(2))
    assert all(torch.equal(first.tensors[suffix], second.tensors[suffix]) for suffix in "AB")


def test_an_impossible_rank_is_refused() -> None:
    """Before LAPACK sees it."""
    with pytest.raises(InputError, match=r"x\.weight: rank 19"):
        factorized(random_weight(7), correlated(7), 19, "svd", 1e-2, torch.float32)
