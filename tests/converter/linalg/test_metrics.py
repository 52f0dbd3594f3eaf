"""Products with a metric that is known by samples, against the Gram matrix that they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from curconvert.factorization.cur import CUROptions, factorize_cur
from curconvert.factorization.types import Factorization, Problem
from curconvert.linalg.chunked import ChunkedMatrix
from curconvert.linalg.metrics import DiagonalMetric, FullMetric
from curconvert.linalg.statistics import InputStatistics
from curconvert.selection import indices
from curconvert.selection.indices import leading_rows
from support.matrices import random_weight


def both(tokens: int = 30, n: int = 50, seed: int = 0) -> tuple[InputStatistics, InputStatistics]:
    """Statistics of the same inputs, as samples and as a Gram matrix; one feature is dead."""
    x = np.random.default_rng(seed).standard_normal((tokens, n)) * np.geomspace(0.1, 5, n)
    x[:, 7] = 0
    x = x.astype(np.float32)
    wide, mean = x.astype(np.float64), x.mean(axis=0, dtype=np.float64)
    samples = InputStatistics(None, tokens, mean, samples=x)
    return samples, InputStatistics(wide.T @ wide / tokens, tokens, mean)


def test_samples_give_what_their_gram_matrix_gives() -> None:
    """H, its diagonal, products with it, and energies."""
    samples, gram = both()
    M = np.random.default_rng(1).standard_normal((50, 6))
    np.testing.assert_allclose(samples.gram, gram.gram, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(samples.diagonal, gram.diagonal, rtol=1e-12)
    np.testing.assert_allclose(samples.times(M), gram.times(M), rtol=1e-10, atol=1e-12)
    assert samples.energy(M.T) == pytest.approx(gram.energy(M.T), rel=1e-5)
    assert gram.energy(M.T) == pytest.approx(np.trace(M.T @ gram.gram @ M), rel=1e-6)
    assert samples.finite and gram.finite


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_an_overflow_is_seen_in_either(bad: float) -> None:
    """Both kinds of statistics are checked for it."""
    x = np.ones((3, 5), np.float32)
    x[1, 2] = bad
    assert not InputStatistics(None, 3, x.mean(axis=0), samples=x).finite
    assert not InputStatistics(x.T @ x, 3, x.mean(axis=0)).finite


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("kind", [0, 1])
def test_sketches_have_the_metric_as_their_second_moment(kind: int, ridge: float) -> None:
    """E[S Ω (S Ω)ᵀ] / k is H + λ diag(H): of samples, of a Gram matrix, and where that is singular."""
    statistics = both()[kind]
    metric = FullMetric(statistics, ridge)
    count = 200_000
    sketch = metric.sketch(count, np.random.default_rng(2))
    expected = statistics.gram + ridge * np.diag(np.diag(statistics.gram))
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert (np.abs(sketch @ sketch.T / count - expected) <= 0.02 * scale + 1e-9).all()
    assert np.abs(sketch[7]).max() < 1e-6  # the dead feature


def test_products_with_metrics() -> None:
    """With the ridge in units of each feature; the diagonal one ignores what features have in common."""
    samples, gram = both()
    M = np.random.default_rng(3).standard_normal((50, 4))
    D = np.diag(np.diag(gram.gram))
    np.testing.assert_allclose(FullMetric(samples, 0.2).times(M), (gram.gram + 0.2 * D) @ M, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(DiagonalMetric(samples).times(M), D @ M, rtol=1e-12)


@pytest.mark.parametrize("selector, importance", [("qr", "output"), ("deim", "wanda")])
def test_factors_are_the_same_from_samples_and_from_their_gram_matrix(selector: str, importance: str) -> None:
    """Same rows and columns, the same link up to rounding, the same errors."""
    options = CUROptions(selector=selector, importance=importance, link="full", ridge=1e-2, seed=0)  # type: ignore[arg-type]
    weight = random_weight(0, 40, 50, torch.float32)
    one, other = (factorize_cur(Problem("x", weight, found, 6, torch.float64, "cur"), options) for found in both())
    assert isinstance(one, Factorization)
    for suffix in ("rows", "cols", "C", "R"):
        assert torch.equal(one.tensors[suffix], other.tensors[suffix]), suffix
    torch.testing.assert_close(one.tensors["U"], other.tensors["U"], rtol=1e-7, atol=1e-9)
    assert one.relative_output_error == pytest.approx(other.relative_output_error, rel=1e-5)
    assert one.relative_frobenius_error == pytest.approx(other.relative_frobenius_error, rel=1e-7)


@pytest.mark.parametrize("kind", [0, 1])
def test_sketched_rows_predict_the_others_as_well_as_exact_ones(monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    """Above the limit a sketch chooses; what the chosen outputs leave of the others grows by little."""
    metric, rng = FullMetric(both(60)[kind], 1e-2), np.random.default_rng(4)
    weight = torch.from_numpy(rng.standard_normal((150, 12)) @ rng.standard_normal((12, 50)))
    weight += 0.05 * torch.from_numpy(rng.standard_normal((150, 50)))
    H = metric.statistics.gram
    outputs = weight.numpy() @ (H + 1e-2 * np.diag(np.diag(H))) @ weight.numpy().T

    def left(limit: int) -> float:
        monkeypatch.setattr(indices, "EXACT_OUTPUTS", limit)
        rows = leading_rows(ChunkedMatrix(weight), metric, 10, np.random.default_rng(0))
        assert len(set(rows.tolist())) == 10
        own = outputs[np.ix_(rows, rows)]
        return float(np.trace(outputs - outputs[:, rows] @ np.linalg.solve(own, outputs[rows])) / np.trace(outputs))

    exact, sketched = left(150), left(1)
    assert exact < 0.2
    assert sketched < 1.3 * exact
