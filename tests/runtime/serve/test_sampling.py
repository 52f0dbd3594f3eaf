"""The sampler's distribution and its edge cases."""

from __future__ import annotations

import numpy as np
import pytest

from curconvert_runtime import VerificationError
from curconvert_runtime.serve.sampling import Sampling, choose

LOGITS = np.log(np.array([0.1, 0.5, 0.25, 0.15], np.float32))


def counts(temperature: float, top_k: int, top_p: float, draws: int = 4000) -> np.ndarray:
    generator = np.random.default_rng(0)
    chosen = [choose(LOGITS, Sampling(temperature, top_k, top_p), (), generator) for _ in range(draws)]
    return np.bincount(chosen, minlength=4) / draws


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "expected"),
    [
        (1.0, 0, 1.0, [0.1, 0.5, 0.25, 0.15]),
        (0.5, 0, 1.0, np.array([0.01, 0.25, 0.0625, 0.0225]) / 0.345),
        (1.0, 2, 1.0, [0, 2 / 3, 1 / 3, 0]),
        (1.0, 0, 0.7, [0, 2 / 3, 1 / 3, 0]),
        (1.0, 0, 0.01, [0, 1, 0, 0]),
        (1.0, 3, 0.8, [0, 2 / 3, 1 / 3, 0]),
        (1.0, 99, 1.0, [0.1, 0.5, 0.25, 0.15]),
    ],
)
def test_frequencies_follow_the_definition(temperature: float, top_k: int, top_p: float, expected: list[float]) -> None:
    """Temperature, then top-k, then top-p on what is left: 4000 draws agree within 3 %."""
    np.testing.assert_allclose(counts(temperature, top_k, top_p), expected, atol=0.03)


def test_greedy_takes_the_lowest_of_equal_ids() -> None:
    """Ties are broken the same way everywhere."""
    assert choose(np.array([1, 3, 3], np.float32), Sampling(), (), np.random.default_rng(0)) == 1


def test_large_logits_do_not_overflow() -> None:
    """The softmax is shifted by its maximum."""
    logits = np.array([3e38, 0, -3e38], np.float32)
    assert choose(logits, Sampling(1e-3), (), np.random.default_rng(0)) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_broken_logits_are_an_error(bad: float) -> None:
    """A NaN is never turned into a token."""
    with pytest.raises(VerificationError, match="not finite"):
        choose(np.array([0, bad], np.float32), Sampling(), (), np.random.default_rng(0))
