"""A row of a batch gives what it gives alone: ids, text, reason and log-probabilities, over many random batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from curconvert_runtime import GenerationOptions, Session
from curconvert_runtime.serve.decoding import Decoder
from support.tiny_artifact import CONTEXT, toy_logits, toy_tensors

BATCHES = 60
TENSORS = toy_tensors()
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def random_rows(rng: np.random.Generator) -> list[list[int]]:
    """Return two to five prompts; most batches have a row near the end of the context."""
    lengths = rng.integers(1, CONTEXT + 1, rng.integers(2, 6))
    return [rng.integers(0, 290, length).tolist() for length in lengths]


def random_options(rng: np.random.Generator, session: Session, rows: list[list[int]]) -> GenerationOptions:
    """Return a limit that some rows reach, and stop texts that some rows meet."""
    options = GenerationOptions(max_new_tokens=int(rng.integers(1, 40)), seed=int(rng.integers(100)))
    if rng.random() < 0.5:
        options = replace(options, temperature=2.0, top_k=int(rng.integers(2, 60)))
    if rng.random() < 0.7:
        met = [done.text[at : at + 2] for done in session.generate(rows, options) if (at := len(done.text) // 2)]
        options = replace(options, stop=tuple(met[:2]))
    return options


def log_probabilities(logits: Any) -> np.ndarray:
    shifted = np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def test_a_row_of_a_batch_gives_what_it_gives_alone(session: Session) -> None:
    """Greedy rows in every place, sampled rows in the first: a later row draws from a seed of its own."""
    rng, reasons = np.random.default_rng(0), set()
    for _ in range(BATCHES):
        rows = random_rows(rng)
        options = random_options(rng, session, rows)
        batch = session.generate(rows, options)
        for row, found in zip(rows, batch[:1] if options.temperature else batch, strict=False):
            assert found == session.generate(row, options)
            reasons.add(found.finish_reason)
    assert reasons == {"length", "context", "stop", "eos"}


def test_log_probabilities_of_a_batch_are_those_of_its_rows(session: Session) -> None:
    """At every position, for batches of every shape."""
    rng = np.random.default_rng(1)
    for _ in range(BATCHES):
        rows = random_rows(rng)
        for row, found in zip(rows, session.logits(rows), strict=True):
            np.testing.assert_allclose(
                log_probabilities(found), log_probabilities(toy_logits(row, TENSORS)), **TOLERANCE
            )


@pytest.mark.parametrize("new", [3, CONTEXT])
def test_rows_go_on_to_the_end_of_their_own_context(session: Session, new: int) -> None:
    """While neighbors leave at random, and whatever room the longest of them had left."""
    rng = np.random.default_rng(2)
    for _ in range(BATCHES // 4):
        rows = random_rows(rng)
        decoder, running = Decoder(session, [np.array(row) for row in rows], new), list(range(len(rows)))
        logits = decoder.prefill()
        for step in range(new):
            for index, found in zip(running, logits, strict=True):
                expected = log_probabilities(toy_logits(rows[index], TENSORS)[-1])
                np.testing.assert_allclose(log_probabilities(found), expected, **TOLERANCE)
            stay = [slot for slot, index in enumerate(running) if len(rows[index]) < CONTEXT and rng.random() < 0.9]
            if not stay or step == new - 1:
                break
            if len(stay) < len(running):
                decoder.keep(stay)
                running = [running[slot] for slot in stay]
            tokens = rng.integers(0, 290, len(running))
            for index, token in zip(running, tokens, strict=True):
                rows[index].append(int(token))
            logits = decoder.step(tokens)
