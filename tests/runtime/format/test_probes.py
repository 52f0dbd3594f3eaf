"""The reader of the probe file takes what it should, and refuses anything else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from curconvert_runtime.errors import IntegrityError
from curconvert_runtime.format.probes import Probes
from support.safetensors_files import save_file

VOCABULARY, SEQUENCES, TOKENS, TOP = 40, 3, 24, 8


def _tensors() -> dict[str, np.ndarray]:
    rng, real = np.random.default_rng(0), np.float32
    shape = (SEQUENCES, TOKENS)
    keys = rng.standard_normal((2, 3, 2, TOKENS, 4)).astype(real)
    return {
        "original.ids": rng.integers(0, VOCABULARY, shape).astype(np.int32),
        "original.top_ids": rng.integers(0, VOCABULARY, (*shape, TOP)).astype(np.int32),
        "original.top_log_probs": -rng.random((*shape, TOP)).astype(real),
        "original.rest_log_prob": -rng.random(shape).astype(real),
        "original.next_log_prob": -rng.random((SEQUENCES, TOKENS - 1)).astype(real),
        "compressed.ids": rng.integers(0, VOCABULARY, shape).astype(np.int32),
        "compressed.lengths": np.array([24, 20, 17], np.int32),
        "compressed.vocabulary": np.arange(VOCABULARY, dtype=np.int32),
        "compressed.logits": rng.standard_normal((*shape, VOCABULARY)).astype(real),
        "compressed.first_key": keys[0],
        "compressed.last_key": keys[1],
    }


def _load(tensors: dict[str, np.ndarray], folder: Path) -> Probes:
    path = folder / "probes.safetensors"
    save_file(tensors, path)
    artifact = SimpleNamespace(
        file=lambda name: folder / name,
        has=lambda name: True,
        model={"vocab_size": VOCABULARY},
        manifest={"matrices": [1]},
    )
    return Probes.load(artifact)  # type: ignore[arg-type]


def test_file_comes_back(tmp_path: Path) -> None:
    """What was written is what is loaded."""
    packed = _tensors()
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
        _load({**_tensors(), name: value}, tmp_path)


def test_a_missing_tensor_is_an_integrity_error(tmp_path: Path) -> None:
    """Every tensor must be there."""
    packed = _tensors()
    del packed["compressed.first_key"]
    with pytest.raises(IntegrityError, match="expected"):
        _load(packed, tmp_path)


def test_no_sequences_is_an_integrity_error(tmp_path: Path) -> None:
    """A probe without sequences cannot pass for a comparison."""
    packed = {name: value[:0] if name.startswith("original") else value for name, value in _tensors().items()}
    with pytest.raises(IntegrityError, match="empty"):
        _load(packed, tmp_path)
