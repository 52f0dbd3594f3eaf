"""Dropping neurons one by one, against refitting from scratch each time."""

from __future__ import annotations

import numpy as np
import pytest

from curconvert.factorization.pruning import drop_neurons


def problem(rng: np.random.Generator, outputs: int = 6, neurons: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return W, G and F; activations are correlated and of unlike energy."""
    samples = rng.standard_normal((400, neurons)) @ rng.standard_normal((neurons, neurons))
    samples *= np.geomspace(0.1, 10, neurons)
    gradients = rng.standard_normal((100, outputs))
    weight = rng.standard_normal((outputs, neurons))
    return weight, samples.T @ samples / 400, gradients.T @ gradients / 100


def refitted_alone(weight: np.ndarray, gram: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return the columns of these neurons that come closest to W's outputs, solved from scratch."""
    return np.linalg.lstsq(gram[np.ix_(kept, kept)], gram[kept] @ weight.T, rcond=None)[0].T


def cost(weight: np.ndarray, gram: np.ndarray, fisher: np.ndarray, kept: np.ndarray) -> float:
    """The least loss with these neurons."""
    whole = np.zeros_like(weight)
    whole[:, kept] = refitted_alone(weight, gram, kept)
    error = weight - whole
    return float(np.trace(fisher @ error @ gram @ error.T))


@pytest.mark.parametrize("seed", range(4))
def test_each_step_drops_the_neuron_that_is_missed_least(seed: int) -> None:
    """Greedy, with an exact refit after each step."""
    weight, gram, fisher = problem(np.random.default_rng(seed))
    alive = np.arange(weight.shape[1])
    for kept, refitted in drop_neurons(weight, gram, fisher, 0.0, step=1, least=3):
        trials = {int(neuron): cost(weight, gram, fisher, alive[alive != neuron]) for neuron in alive}
        (dropped,) = np.setdiff1d(alive, kept)
        assert trials[int(dropped)] == pytest.approx(min(trials.values()), rel=1e-5)
        expected = refitted_alone(weight, gram, kept)
        np.testing.assert_allclose(refitted, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
        alive = kept
    assert len(alive) == 3


def test_several_at_a_time_end_at_the_wanted_number() -> None:
    """Also where the steps do not divide it, and each is refitted jointly."""
    weight, gram, fisher = problem(np.random.default_rng(9))
    steps = list(drop_neurons(weight, gram, fisher, 0.0, step=5, least=3))
    assert [len(kept) for kept, _ in steps] == [7, 3]
    kept, refitted = steps[-1]
    expected = refitted_alone(weight, gram, kept)
    np.testing.assert_allclose(refitted, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_neurons_that_never_fire_go_first() -> None:
    """They cost nothing, and do not make the Gram matrix singular."""
    weight, gram, fisher = problem(np.random.default_rng(2))
    gram[[1, 7]] = 0
    gram[:, [1, 7]] = 0
    kept, _ = next(drop_neurons(weight, gram, fisher, 1e-2, step=1, least=4))
    assert not {1, 7} & set(kept.tolist())


def test_nothing_fires() -> None:
    """Then there is nothing to go by, and nothing is dropped."""
    assert list(drop_neurons(np.ones((2, 5)), np.zeros((5, 5)), np.eye(2), 1e-2, step=2, least=3)) == []
