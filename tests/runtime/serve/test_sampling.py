"""The sampler's distribution and its edge cases."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curconvert_runtime import GenerationOptions, InputError, VerificationError, load
from curconvert_runtime.serve.sampling import Sampling, choose
from support.tiny_artifact import reseal

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


GIVEN: list[tuple[dict[str, Any], dict[str, Any], Sampling]] = [
    ({}, {}, Sampling()),
    ({}, {"temperature": 0.7, "top_k": 5}, Sampling(0.0, 5)),
    ({}, {"do_sample": False, "temperature": 0.7}, Sampling()),
    ({}, {"do_sample": True}, Sampling(1.0, 50)),
    ({}, {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 0.8, "min_p": 0.1}, Sampling(0.7, 0, 0.8, 0.1)),
    ({}, {"do_sample": True, "top_k": None}, Sampling(1.0, 50)),
    ({}, {"repetition_penalty": 1.1}, Sampling(repetition_penalty=1.1)),
    ({"temperature": 0.0}, {"do_sample": True, "repetition_penalty": 1.1}, Sampling(0.0, 50, repetition_penalty=1.1)),
    ({"temperature": 0.5}, {"temperature": 0.7, "top_p": 0.9}, Sampling(0.5, 0, 0.9)),
    ({"top_k": 3, "repetition_penalty": 1.0}, {"do_sample": True, "repetition_penalty": 2.0}, Sampling(1.0, 3)),
]


@pytest.mark.parametrize(("given", "settings", "expected"), GIVEN)
def test_a_request_counts_before_the_file(given: dict[str, Any], settings: dict[str, Any], expected: Sampling) -> None:
    """What a request leaves out is the file's, or transformers' default; the temperature counts if the file samples."""
    assert GenerationOptions(**given).sampling(settings) == expected


@pytest.mark.parametrize(
    "settings", [{"min_p": -0.1}, {"min_p": True}, {"repetition_penalty": 0}, {"repetition_penalty": float("inf")}]
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any]) -> None:
    """In a request as in a file."""
    for make in (lambda: GenerationOptions(**settings), lambda: Sampling.of({}, settings)):
        with pytest.raises(InputError, match=next(iter(settings))):
            make()


def test_the_penalty_leaves_the_logits_alone() -> None:
    """They belong to the session's buffer."""
    logits = np.array([1, 3, 2.9], np.float32)
    assert choose(logits, Sampling(repetition_penalty=1.5), [1, 1], np.random.default_rng(0)) == 2
    assert logits[1] == 3


def test_a_file_that_samples_makes_generation_sample(toy: Path) -> None:
    """Without options the text depends on the seed; a temperature of 0 gives the greedy text."""
    greedy = load(toy, threads=1).generate([1, 2, 3], GenerationOptions(max_new_tokens=12)).ids
    settings = {"do_sample": True, "temperature": 8.0, "top_k": 0, "repetition_penalty": 1.0}
    (toy / "generation_config.json").write_text(json.dumps(settings))
    reseal(toy)
    session = load(toy, threads=1)
    first, second = (
        session.generate([1, 2, 3], GenerationOptions(max_new_tokens=12, seed=seed)).ids for seed in (0, 1)
    )
    assert first != second
    assert session.generate([1, 2, 3], GenerationOptions(max_new_tokens=12, temperature=0)).ids == greedy


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"no_repeat_ngram_size": 3, "typical_p": 0.5}, "no_repeat_ngram_size, typical_p"),
        ({"forced_eos_token_id": 0}, "forced_eos_token_id"),
        ({"num_beams": 4}, "num_beams"),
        ({"no_repeat_ngram_size": 0, "typical_p": 1.0, "num_beams": 1, "bad_words_ids": None, "temperature": 1}, None),
    ],
)
def test_loading_names_what_is_not_followed(
    toy: Path, settings: dict[str, Any], named: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning for all settings with an effect in transformers only."""
    (toy / "generation_config.json").write_text(json.dumps(settings))
    reseal(toy)
    with caplog.at_level(logging.WARNING):
        load(toy, threads=1)
    expected = f"{toy / 'generation_config.json'}: {named}: not followed, transformers does"
    assert [record.getMessage() for record in caplog.records] == ([expected] if named else [])
