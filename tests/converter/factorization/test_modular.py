"""A smaller MLP: which neurons are kept, how down_proj makes up for the others, what is stored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from curconvert.base.errors import InputError
from curconvert.base.roles import Role
from curconvert.factorization.modular import RIDGES as RIDGE_CANDIDATES
from curconvert.factorization.modular import (
    ModularOptions,
    corrected_down,
    factorize_mlp,
    held_out_ridge,
    keep_neurons,
    ridge_leverage,
)
from curconvert.factorization.projection import Projection
from curconvert.factorization.types import Factorization
from curconvert.linalg.statistics import InputStatistics
from support.matrices import correlated, dead, error_in, random_weight, statistics_of

SEEDS = st.integers(0, 2**32 - 1)
RIDGES = st.floats(1e-3, 1e3)
HIDDEN, NEURONS = 10, 18


def activations(seed: int, tokens: int = 30) -> np.ndarray:
    """Correlated activations, fewer directions than neurons."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((tokens, 12)) @ rng.standard_normal((12, NEURONS)) + 0.1


def mlp(seed: int, biased: bool = False, dtype: torch.dtype = torch.float32) -> dict[Role, Projection]:
    """The three linears of an MLP, with statistics of their inputs."""
    x, h = correlated(seed, HIDDEN), activations(seed)
    bias = random_weight(seed + 3, NEURONS, 1, dtype)[:, 0] if biased else None
    return {
        Role.GATE: Projection(random_weight(seed, NEURONS, HIDDEN, dtype), x, bias),
        Role.UP: Projection(random_weight(seed + 1, NEURONS, HIDDEN, dtype), x, None if bias is None else 2 * bias),
        Role.DOWN: Projection(random_weight(seed + 2, HIDDEN, NEURONS, dtype), statistics_of(h)),
    }


def factorize(
    projections: dict[Role, Projection], count: int = 7, ridge: float = 1e-3, dtype: torch.dtype = torch.float32
) -> dict[Role, Factorization]:
    return factorize_mlp(projections, count, ModularOptions(ridge, ridge), dtype)


@given(seed=SEEDS, ridge=RIDGES)
def test_scores_are_the_ridge_leverage_of_the_scaled_gram(seed: int, ridge: float) -> None:
    """diag(G'(G' + λI)⁻¹), λ relative to the mean diagonal of G' = diag(s) G diag(s), by NumPy."""
    h = activations(seed)
    s = np.abs(np.random.default_rng(seed + 1).standard_normal(NEURONS))
    G = np.diag(s) @ (h.T @ h) @ np.diag(s)
    shift = ridge * np.trace(G) / NEURONS
    expected = np.diag(G @ np.linalg.inv(G + shift * np.eye(NEURONS)))
    np.testing.assert_allclose(ridge_leverage(h.T @ h, s, ridge), expected, atol=1e-10)


@given(seed=SEEDS, ridge=RIDGES, scale=st.floats(1e-6, 1e6))
def test_scores_do_not_depend_on_the_units(seed: int, ridge: float, scale: float) -> None:
    """The ridge is relative; scores lie between 0 and 1 and a neuron that never fires has none."""
    h = activations(seed)
    h[:, 4] = 0
    found = ridge_leverage(h.T @ h, np.ones(NEURONS), ridge)
    np.testing.assert_allclose(ridge_leverage(scale * h.T @ h, np.ones(NEURONS), ridge), found, atol=1e-10)
    assert ((found >= 0) & (found <= 1)).all()
    assert found[4] == pytest.approx(0, abs=1e-12)


def test_without_a_ridge_a_singular_gram_still_has_scores() -> None:
    """A small ridge stands in: the scores add up to the number of directions."""
    h = activations(0)
    assert ridge_leverage(h.T @ h, np.ones(NEURONS), 0.0).sum() == pytest.approx(13, abs=1e-3)
    assert not ridge_leverage(np.zeros((5, 5)), np.ones(5), 0.0).any()


def test_the_gram_is_left_as_it_is() -> None:
    """It serves the correction afterwards."""
    gram = activations(0).T @ activations(0)
    before = gram.copy()
    ridge_leverage(gram, np.ones(NEURONS), 1e-2)
    corrected_down(random_weight(0, HIDDEN, NEURONS).numpy(), gram, np.arange(3, dtype=np.int32), 1e-2)
    np.testing.assert_array_equal(gram, before)


@given(scores=st.lists(st.floats(0, 1), min_size=1, max_size=30), data=st.data())
def test_the_largest_scores_are_kept_in_order(scores: list[float], data: st.DataObject) -> None:
    """Ascending and distinct; none left out beats one that is kept; the first of equals."""
    count = data.draw(st.integers(1, len(scores)))
    kept = keep_neurons(np.array(scores), count)
    assert kept.dtype == np.int32
    assert kept.tolist() == sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])


@pytest.mark.parametrize("count", [0, -1, 4])
def test_an_impossible_count_is_refused(count: int) -> None:
    """At least one neuron, at most all."""
    with pytest.raises(InputError, match=f"{count} neurons: expected 1 to 3"):
        keep_neurons(np.ones(3), count)


@given(seed=SEEDS, ridge=RIDGES, count=st.integers(1, NEURONS))
def test_the_correction_is_ridge_regression(seed: int, ridge: float, count: int) -> None:
    """It equals a least-squares solve on the activations themselves, with a pull to W's own columns."""
    h, W = activations(seed), random_weight(seed % 1000, HIDDEN, NEURONS).numpy()
    kept = np.sort(np.random.default_rng(seed).permutation(NEURONS)[:count]).astype(np.int32)
    pull = np.sqrt(max(ridge, 1e-10)) * np.diag(np.linalg.norm(h[:, kept], axis=0))
    left = np.vstack([h[:, kept], pull])
    right = np.vstack([h @ W.T, pull @ W[:, kept].T])
    expected = np.linalg.lstsq(left, right, rcond=None)[0].T
    np.testing.assert_allclose(corrected_down(W, h.T @ h, kept, ridge), expected, atol=1e-6)


def test_dependent_neurons_are_made_up_for_exactly() -> None:
    """Thirteen directions: as many independent neurons lose nothing, without a ridge."""
    h, W = activations(0), random_weight(0, HIDDEN, NEURONS).numpy()
    kept = np.arange(13, dtype=np.int32)
    smaller = corrected_down(W, h.T @ h, kept, 0.0)
    assert np.linalg.norm(h @ W.T - h[:, kept] @ smaller.T) < 1e-4 * np.linalg.norm(h @ W.T)


def test_with_all_neurons_kept_the_weight_comes_back() -> None:
    """The ridge pulls to it, not to zero."""
    h, W = activations(3), random_weight(3, HIDDEN, NEURONS).numpy()
    kept = np.arange(NEURONS, dtype=np.int32)
    np.testing.assert_allclose(corrected_down(W, h.T @ h, kept, 0.1), W, atol=1e-12)


def test_without_activations_the_columns_stay() -> None:
    """Nothing is known, nothing is changed."""
    W, kept = random_weight(0, HIDDEN, NEURONS).numpy(), np.array([1, 5], np.int32)
    np.testing.assert_array_equal(corrected_down(W, np.zeros((NEURONS, NEURONS)), kept, 1e-2), W[:, kept])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("biased", [True, False])
def test_stored_tensors(dtype: torch.dtype, biased: bool) -> None:
    """Gate and up are rows of the weight bit for bit, their biases too; all three list the same neurons."""
    projections = mlp(0, biased)
    found = factorize(projections, dtype=dtype)
    kept = found[Role.DOWN].tensors["cols"]
    assert kept.dtype == torch.int32
    for name in (Role.GATE, Role.UP):
        part, tensors = projections[name], found[name].tensors
        assert (found[name].form, found[name].rank, found[name].shape) == ("modular_rows", 7, (NEURONS, HIDDEN))
        assert torch.equal(tensors["rows"], kept)
        assert torch.equal(tensors["weight"], part.weight.to(dtype)[kept.long()])
        assert ("bias" in tensors) == biased
        if part.bias is not None:
            assert torch.equal(tensors["bias"], part.bias.to(dtype)[kept.long()])
    assert (found[Role.DOWN].form, found[Role.DOWN].shape) == ("modular_columns", (HIDDEN, NEURONS))
    assert found[Role.DOWN].tensors["weight"].dtype == dtype
    assert found[Role.DOWN].tensors["weight"].shape == (HIDDEN, 7)
    assert "bias" not in found[Role.DOWN].tensors


def test_neurons_are_kept_by_what_reaches_the_output() -> None:
    """A neuron whose column is zero is dropped, however strongly it fires."""
    projections = mlp(1)
    down = projections[Role.DOWN]
    down.weight[:, 3] = 0
    down.statistics.gram[3, 3] *= 1e6
    assert 3 not in factorize(projections, count=17)[Role.DOWN].tensors["cols"].tolist()


def test_the_modules_error_is_reported_on_down_proj() -> None:
    """‖W h − W' h_K‖ / ‖W h‖ over the tokens, of the tensors as they are stored."""
    projections, h = mlp(2), activations(2)
    found = factorize(projections, dtype=torch.float16)[Role.DOWN]
    W, smaller = projections[Role.DOWN].weight.double().numpy(), found.tensors["weight"].double().numpy()
    error = np.linalg.norm(h @ W.T - h[:, found.tensors["cols"].numpy()] @ smaller.T)
    assert found.relative_output_error == pytest.approx(error / np.linalg.norm(h @ W.T), rel=1e-6)


def test_the_dropped_share_is_reported_on_gate_and_up() -> None:
    """‖dropped outputs‖ / ‖outputs‖."""
    projections = mlp(3)
    found = factorize(projections)[Role.GATE]
    W, H = projections[Role.GATE].weight.double().numpy(), projections[Role.GATE].statistics.gram
    dropped = np.delete(W, found.tensors["rows"].numpy(), axis=0)
    assert found.relative_output_error == pytest.approx(error_in(H, dropped) / error_in(H, W), rel=1e-6)
    assert found.relative_frobenius_error == pytest.approx(np.linalg.norm(dropped) / np.linalg.norm(W), rel=1e-9)


@pytest.mark.parametrize("count", [1, 7, NEURONS])
def test_edge_cases_are_finite_in_half_precision(count: int) -> None:
    """Dead neurons, no input at all, no ridge."""
    whole = mlp(4)
    for gone in (range(3), range(NEURONS)):
        down = whole[Role.DOWN]
        edge = whole | {Role.DOWN: Projection(down.weight, dead(down.statistics, *gone))}
        for factors in factorize(edge, count, ridge=0.0, dtype=torch.float16).values():
            assert all(torch.isfinite(tensor).all() for tensor in factors.tensors.values())
            assert np.isfinite(factors.relative_output_error)


def held_out(h: np.ndarray, tokens: int) -> InputStatistics:
    """Statistics of activations whose first tokens are held out."""
    return replace(statistics_of(h), held_out=statistics_of(h[:tokens]))


@pytest.mark.parametrize("tokens", [24, 4000])
def test_the_ridge_is_the_one_that_predicts_unseen_tokens(tokens: int) -> None:
    """By trying each on the tokens themselves: few call for a strong ridge, many for a weak one."""
    rng = np.random.default_rng(0)
    h = rng.standard_normal((tokens + 200, NEURONS)) @ rng.standard_normal((NEURONS, NEURONS))
    W = random_weight(1, HIDDEN, NEURONS).double().numpy()
    statistics, options = held_out(h, 200), ModularOptions(1e-2, 1e-3)
    G = h[200:].T @ h[200:] / tokens
    kept = keep_neurons(ridge_leverage(G, np.linalg.norm(W, axis=0), 1e-2), 9)

    def unseen(ridge: float) -> float:
        outputs = h[:200] @ W.T - h[:200, kept] @ corrected_down(W, G, kept, ridge).T
        return float((outputs**2).sum())

    chosen = held_out_ridge(W, statistics, 9, options)
    assert chosen == min((1e-3, *RIDGE_CANDIDATES), key=unseen)
    assert (chosen > 0.01) == (tokens == 24)


def test_without_held_out_tokens_the_ridge_is_the_given_one() -> None:
    """There is nothing to choose by."""
    W = random_weight(1, HIDDEN, NEURONS).double().numpy()
    assert held_out_ridge(W, statistics_of(activations(0)), 9, ModularOptions(1e-2, 0.07)) == 0.07
