"""What the probe file is filled with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import special

from curconvert.calibration.probes import fidelity_probe, pack_probes, parity_batch, sample_vocabulary
from curconvert_runtime.errors import InputError
from curconvert_runtime.format.probes import CompressedProbe

RNG = np.random.default_rng(0)
IDS = RNG.integers(0, 40, (3, 24))
LOGITS = RNG.normal(0, 3, (3, 24, 40)).astype(np.float32)


def _compressed() -> CompressedProbe:
    ids, lengths = parity_batch(IDS)
    rows, width = ids.shape
    keys = np.zeros((rows, 2, width, 4), np.float32)
    vocabulary = sample_vocabulary(40)
    return CompressedProbe(ids, lengths, vocabulary, np.zeros((rows, width, 40), np.float32), keys, keys + 1)


def _packed(top: int = 8) -> dict[str, np.ndarray]:
    following = np.roll(IDS, -1, axis=1)
    flat, after = LOGITS.reshape(-1, 40), following.reshape(-1)
    chunks = [fidelity_probe(flat[start : start + 10], after[start : start + 10], top) for start in range(0, 72, 10)]
    return pack_probes(IDS, chunks, _compressed())


def test_top_tokens_and_rest_are_scipys() -> None:
    """Top ids, their log-probabilities and the rest equal a float64 computation by scipy."""
    packed = _packed()
    log_probs = special.log_softmax(LOGITS.astype(np.float64), axis=-1)
    order = np.argsort(-log_probs, axis=-1)[..., :8]
    top = np.take_along_axis(log_probs, order, -1)
    np.testing.assert_array_equal(packed["original.top_ids"], order)
    np.testing.assert_allclose(packed["original.top_log_probs"], top, rtol=1e-6)
    np.testing.assert_allclose(np.exp(packed["original.rest_log_prob"]), 1 - np.exp(top).sum(-1), rtol=1e-5)


def test_next_token_log_probs_are_the_texts() -> None:
    """The stored next-token log-probability at t is that of the token at t + 1."""
    log_probs = special.log_softmax(LOGITS.astype(np.float64), axis=-1)
    expected = [[log_probs[s, t, IDS[s, t + 1]] for t in range(23)] for s in range(3)]
    np.testing.assert_allclose(_packed()["original.next_log_prob"], expected, rtol=1e-6)


def test_a_small_vocabulary_is_kept_whole() -> None:
    """With fewer tokens than K all are kept and nothing is left for the rest; the file still holds finite numbers."""
    packed = _packed(top=256)
    assert packed["original.top_ids"].shape == (3, 24, 40)
    assert (np.exp(packed["original.rest_log_prob"]) == 0).all()
    assert np.isfinite(packed["original.rest_log_prob"]).all()


def test_equal_logits_are_ordered_by_id() -> None:
    """Ties put the smallest id first, as argmax does."""
    probe = fidelity_probe(np.zeros((1, 50), np.float32), np.array([0]), 50)
    np.testing.assert_array_equal(probe.top_ids[0], np.arange(50))


def test_packing_refuses_missing_positions() -> None:
    """Chunks must cover every position."""
    with pytest.raises(InputError, match="positions"):
        pack_probes(IDS, [fidelity_probe(LOGITS[0], IDS[0])], _compressed())


def test_packing_refuses_misfits() -> None:
    """The writer checks what the reader would refuse."""
    compressed = replace(_compressed(), logits=np.zeros((1, 2, 3), np.float32))
    chunk = fidelity_probe(LOGITS.reshape(-1, 40), IDS.reshape(-1))
    with pytest.raises(InputError, match="logits"):
        pack_probes(IDS, [chunk], compressed)


def test_parity_rows_are_unequal_beginnings_of_the_sequences() -> None:
    """Rows of a batch are 48, 33 and 20 tokens of distinct sequences, padded by zero."""
    ids = RNG.integers(1, 99, (16, 128))
    batch, lengths = parity_batch(ids)
    assert lengths.tolist() == [48, 33, 20]
    np.testing.assert_array_equal(batch[1, :33], ids[1, :33])
    assert not batch[2, 20:].any()


def test_parity_rows_of_one_short_sequence_still_differ() -> None:
    """One sequence of 24 tokens gives three rows of different lengths."""
    assert len(set(parity_batch(RNG.integers(1, 9, (1, 24)))[1].tolist())) == 3


def test_too_short_sequences_are_refused() -> None:
    """Sixteen tokens leave nothing to prefill."""
    with pytest.raises(InputError, match="too short"):
        parity_batch(np.ones((4, 16), np.int64))


def test_vocabulary_sample_is_fixed_and_distinct() -> None:
    """The sample depends on nothing but the vocabulary's size."""
    sample = sample_vocabulary(49152)
    np.testing.assert_array_equal(sample, sample_vocabulary(49152))
    assert len(np.unique(sample)) == 512
    assert sample.max() < 49152
