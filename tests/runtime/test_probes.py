"""What the probe file keeps, and that its reader refuses anything else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy import special

from curconvert_runtime.checks.probing import fidelity_probe, pack_probes, parity_batch, sample_vocabulary
from curconvert_runtime.errors import InputError, IntegrityError
from curconvert_runtime.format.probes import CompressedProbe, Probes

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


def _load(tensors: dict[str, np.ndarray], folder: Path) -> Probes:
    path = folder / "probes.safetensors"
    save_file(tensors, path)
    artifact = SimpleNamespace(
        file=lambda name: folder / name, has=lambda name: True, model={"vocab_size": 40}, manifest={"matrices": [1]}
    )
    return Probes.load(artifact)  # type: ignore[arg-type]


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


def test_file_comes_back(tmp_path: Path) -> None:
    """What was packed is what is loaded."""
    packed = _packed()
    probes = _load(packed, tmp_path)
    np.testing.assert_array_equal(probes.original.top_ids, packed["original.top_ids"])
    np.testing.assert_array_equal(probes.compressed.last_key, packed["compressed.last_key"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("original.ids", np.zeros((3, 24), np.int64)),
        ("original.rest_log_prob", np.zeros((3, 23), np.float32)),
        ("original.next_log_prob", np.zeros((3, 24), np.float32)),
        ("compressed.lengths", np.array([24, 24, 16], np.int32)),
        ("compressed.lengths", np.array([24, 24, 25], np.int32)),
        ("compressed.logits", np.zeros((3, 24, 39), np.float32)),
        ("compressed.first_key", np.zeros((3, 24, 4), np.float32)),
        ("compressed.vocabulary", np.zeros(40, np.float32)),
        ("compressed.vocabulary", np.full(40, 40, np.int32)),
        ("original.top_ids", np.full((3, 24, 8), -1, np.int32)),
        ("original.ids", np.full((3, 24), 99, np.int32)),
        ("stray", np.zeros(1, np.float32)),
    ],
)
def test_a_misfit_is_an_integrity_error(tmp_path: Path, name: str, value: np.ndarray) -> None:
    """Wrong types, shapes, lengths and names are refused when the file is read."""
    with pytest.raises(IntegrityError, match=r"probes\.safetensors"):
        _load({**_packed(), name: value}, tmp_path)


def test_a_missing_tensor_is_an_integrity_error(tmp_path: Path) -> None:
    """Every tensor must be there."""
    packed = _packed()
    del packed["compressed.first_key"]
    with pytest.raises(IntegrityError, match="expected"):
        _load(packed, tmp_path)


def test_no_sequences_is_an_integrity_error(tmp_path: Path) -> None:
    """A probe without sequences cannot pass for a comparison."""
    packed = {name: value[:0] if name.startswith("original") else value for name, value in _packed().items()}
    with pytest.raises(IntegrityError, match="empty"):
        _load(packed, tmp_path)


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
