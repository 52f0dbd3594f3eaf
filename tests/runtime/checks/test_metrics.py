"""Metrics against scipy and hand computations in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special, stats

from curconvert_runtime.checks.metrics import (
    bucket_log_probs,
    fidelity,
    kl_divergence,
    kl_lower_bound,
    log_softmax,
    logsumexp,
    perplexity,
    standard_error,
    summarize,
)
from curconvert_runtime.errors import InputError

FINITE = st.floats(-50, 50, width=32)
LOGITS = hnp.arrays(np.float32, (2, 7), elements=FINITE)


def _bucketed(reference: np.ndarray, candidate: np.ndarray, k: int) -> np.ndarray:
    ids = np.argsort(-reference, axis=-1)[..., :k]
    return kl_lower_bound(*bucket_log_probs(reference, ids), *bucket_log_probs(candidate, ids))


def test_log_softmax_is_scipys() -> None:
    """log_softmax of float32 logits equals scipy's in float64."""
    logits = np.random.default_rng(0).normal(0, 30, (3, 5, 101)).astype(np.float32)
    np.testing.assert_allclose(log_softmax(logits), special.log_softmax(logits.astype(np.float64), axis=-1), atol=1e-12)


def test_logsumexp_of_nothing_but_minus_infinity() -> None:
    """An empty bucket has log-probability −inf, without a warning."""
    assert logsumexp(np.full((1, 4), -np.inf))[0] == -np.inf


def test_kl_is_scipys_relative_entropy() -> None:
    """KL from log-probabilities equals scipy's entropy(p, q)."""
    rng = np.random.default_rng(1)
    p, q = rng.dirichlet(np.ones(40), 6), rng.dirichlet(np.ones(40), 6)
    np.testing.assert_allclose(kl_divergence(np.log(p), np.log(q)), stats.entropy(p, q, axis=-1), rtol=1e-12)


def test_kl_is_infinite_where_the_candidate_excludes_a_token() -> None:
    """A token that only the reference allows makes KL infinite; the reverse costs nothing special."""
    half = np.log([[0.5, 0.5]])
    sure = np.array([[0.0, -np.inf]])
    assert kl_divergence(half, sure)[0] == np.inf
    assert kl_divergence(sure, half)[0] == pytest.approx(math.log(2))


def test_bucket_holds_the_remaining_probability() -> None:
    """The rest bucket is one minus the picked tokens' probability."""
    p = np.random.default_rng(2).dirichlet(np.ones(9), 3)
    ids = np.array([[0, 8], [3, 1], [5, 6]])
    picked, rest = bucket_log_probs(np.log(p), ids)
    np.testing.assert_allclose(np.exp(picked), np.take_along_axis(p, ids, -1), rtol=1e-12)
    np.testing.assert_allclose(np.exp(rest), 1 - np.take_along_axis(p, ids, -1).sum(-1), rtol=1e-10)


def test_bucket_does_not_change_its_argument() -> None:
    """Splitting leaves the caller's float64 array as it was."""
    log_probs = log_softmax(np.ones((1, 4)))
    before = log_probs.copy()
    bucket_log_probs(log_probs, np.array([[1]]))
    np.testing.assert_array_equal(log_probs, before)


@given(LOGITS, LOGITS, st.integers(1, 7))
def test_bucketed_kl_is_a_lower_bound(reference: np.ndarray, candidate: np.ndarray, k: int) -> None:
    """0 ≤ bucketed KL ≤ full KL, for any two distributions and any bucket."""
    p, q = log_softmax(reference), log_softmax(candidate)
    low, full = _bucketed(p, q, k), kl_divergence(p, q)
    assert (low >= 0).all()
    assert (low <= full + 1e-9).all()


@given(LOGITS, st.integers(1, 7), st.floats(-20, 20))
def test_equal_distributions_have_no_divergence(logits: np.ndarray, k: int, shift: float) -> None:
    """Logits that differ by a constant are the same distribution: KL and its bound are zero."""
    p, q = log_softmax(logits), log_softmax(logits.astype(np.float64) + shift)
    np.testing.assert_allclose(kl_divergence(p, q), 0, atol=1e-12)
    np.testing.assert_allclose(_bucketed(p, q, k), 0, atol=1e-12)


def test_a_stored_zero_costs_nothing() -> None:
    """A bucket whose probability underflows to zero adds nothing, even where the candidate's is exactly zero."""
    p = log_softmax(np.array([[1.0, 2.0]]))
    assert kl_lower_bound(p, np.array([-1e4]), p, np.array([-np.inf]))[0] == 0


def test_bucket_of_the_whole_vocabulary_is_exact() -> None:
    """With K = vocabulary the bound is the divergence."""
    rng = np.random.default_rng(3)
    p, q = log_softmax(rng.normal(0, 3, (4, 12))), log_softmax(rng.normal(0, 3, (4, 12)))
    np.testing.assert_allclose(_bucketed(p, q, 12), kl_divergence(p, q), rtol=1e-12)


def test_perplexity_of_a_uniform_model_is_its_vocabulary() -> None:
    """A model that gives every token 1/V has perplexity V."""
    assert perplexity(np.full((2, 5), -math.log(77))) == pytest.approx(77)


def test_percentiles_are_numpys_linear_ones() -> None:
    """Median, p90, p99 and max of 0…100 are 50, 90, 99 and 100."""
    summary = summarize(np.random.default_rng(4).permutation(101).astype(np.float32)[None, :])
    assert (summary.median, summary.p90, summary.p99, summary.max, summary.mean) == (50, 90, 99, 100, 50)


def test_standard_error_treats_sequences_as_samples() -> None:
    """The standard error is scipy's sem of the sequences' means."""
    values = np.random.default_rng(5).normal(size=(6, 10))
    assert standard_error(values) == pytest.approx(stats.sem(values.mean(axis=1)))


def test_standard_error_of_one_sequence_is_unknown() -> None:
    """One sequence says nothing about the spread between sequences."""
    assert math.isnan(standard_error(np.ones((1, 10))))


@pytest.mark.parametrize("shape", [(0, 8), (8, 0), (3,)])
def test_no_tokens_cannot_be_summarized(shape: tuple[int, ...]) -> None:
    """Zero samples are an error, not a zero divergence."""
    with pytest.raises(InputError, match="no tokens"):
        summarize(np.zeros(shape))


def test_no_next_token_has_no_perplexity() -> None:
    """Sequences of one token have nothing to predict."""
    with pytest.raises(InputError, match="no next tokens"):
        perplexity(np.zeros((3, 0)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_bad_token_reaches_the_summary(bad: float) -> None:
    """A single NaN or infinity is visible in the mean and the maximum."""
    values = np.zeros((3, 4))
    values[1, 2] = bad
    summary = summarize(values)
    assert not math.isfinite(summary.mean)
    assert not math.isfinite(summary.max)


def test_nan_logits_reach_the_divergence() -> None:
    """A NaN logit on either side gives a NaN divergence."""
    good = log_softmax(np.ones((1, 3)))
    bad = log_softmax(np.array([[1.0, np.nan, 0.0]]))
    assert np.isnan(kl_divergence(good, bad)).all()
    assert np.isnan(kl_divergence(bad, good)).all()


def test_fidelity_of_a_hand_made_pair() -> None:
    """Ratio, agreement and counts follow from the per-token values."""
    result = fidelity(
        np.array([[0.1, 0.3], [0.0, 0.2]]),
        np.array([[True, False], [True, True]]),
        np.array([[-1.0], [-3.0]]),
        np.array([[-2.0], [-4.0]]),
        exact=False,
    )
    assert result.kl.mean == pytest.approx(0.15)
    assert result.top1 == 0.75
    assert result.perplexity_ratio == pytest.approx(math.e)
    assert result.perplexity_compressed == pytest.approx(math.exp(3))
    assert (result.sequences, result.tokens, result.exact) == (2, 4, False)
    assert result.log_ratio_standard_error == pytest.approx(0)
