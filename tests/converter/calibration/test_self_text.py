"""Text that the model writes itself: sampled as transformers would, in its place among the given sequences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from curconvert.base.progress import silent
from curconvert.calibration import self_text
from curconvert.calibration.self_text import sample, with_self_text
from curconvert.calibration.text import CalibrationTokens, digest, load_tokens
from curconvert.checkpoint import open_checkpoint
from curconvert.families.family import SUPPORTED_FAMILIES
from curconvert.options.calibration import CalibrationOptions
from support.families import make_checkpoint
from support.tiny_runs import LENGTH, token_file

FIRST = np.array([[5], [17], [40], [5]], dtype=np.int64)


@pytest.fixture
def given(tmp_path: Path) -> CalibrationTokens:
    """Twelve calibration and two probe sequences of random tokens."""
    source = str(token_file(tmp_path / "ids.safetensors"))
    return load_tokens(CalibrationOptions(source=source, sequences=12, tokens_per_sequence=LENGTH, probe_sequences=2))


@pytest.mark.parametrize("family", sorted(SUPPORTED_FAMILIES))
def test_tokens_are_drawn_from_the_models_own_distribution(family: str, tmp_path: Path) -> None:
    """The same draws from whole forward passes of transformers' model, without a cache, beyond sliding windows."""
    make_checkpoint(tmp_path / "model", family)
    found = sample(open_checkpoint(tmp_path / "model"), FIRST, 12, 3, silent)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(3)
    ids = torch.from_numpy(FIRST)
    with torch.inference_mode():
        while ids.shape[1] < 12:
            chances = model(input_ids=ids, use_cache=False).logits[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)], 1)
    assert np.array_equal(found, ids.numpy())


def test_every_other_sequence_keeps_its_first_token_alone(given: CalibrationTokens, tmp_path: Path) -> None:
    """The others stay; the digest is that of the result, and the seed decides it."""
    make_checkpoint(tmp_path / "model", "llama")
    checkpoint = open_checkpoint(tmp_path / "model")
    mixed = with_self_text(checkpoint, given, 0.5, 0, silent)
    for before, after in ((given.calibration, mixed.calibration), (given.probes, mixed.probes)):
        changed = (before != after).any(axis=1)
        assert np.array_equal(changed, np.arange(len(before)) % 2 == 1)
        assert np.array_equal(before[:, 0], after[:, 0])
    assert mixed.sha256 == digest(mixed.calibration, mixed.probes) != given.sha256
    assert with_self_text(checkpoint, given, 0.5, 0, silent).sha256 == mixed.sha256
    assert with_self_text(checkpoint, given, 0.5, 1, silent).sha256 != mixed.sha256


def test_after_a_begin_token_the_first_token_of_the_text_stays(given: CalibrationTokens, tmp_path: Path) -> None:
    """The model goes on from both; transformers draws the same tokens from both."""
    make_checkpoint(tmp_path / "model", "llama")
    rows = [np.insert(part[:, :11], 0, 1, axis=1) for part in (given.calibration, given.probes)]
    begun = replace(given, calibration=rows[0], probes=rows[1], begin=1)
    mixed = with_self_text(open_checkpoint(tmp_path / "model"), begun, 1.0, 3, silent)
    found = np.concatenate([mixed.calibration, mixed.probes])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(3)
    ids = torch.from_numpy(np.concatenate(rows)[:, :2])
    with torch.inference_mode():
        while ids.shape[1] < 12:
            chances = model(input_ids=ids, use_cache=False).logits[:, -1].softmax(-1)
            ids = torch.cat([ids, torch.multinomial(chances, 1, generator=generator)], 1)
    assert np.array_equal(found, ids.numpy())
    assert (found != np.concatenate(rows)).any(axis=1).all()


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.25, 3), (1 / 3, 4), (0.9, 10), (1.0, 12)])
def test_the_share_is_met(share: float, count: int, given: CalibrationTokens, tmp_path: Path) -> None:
    """Rounded down; 0 changes nothing, 1 everything."""
    make_checkpoint(tmp_path / "model", "llama")
    mixed = with_self_text(open_checkpoint(tmp_path / "model"), given, share, 0, silent)
    assert int((mixed.calibration != given.calibration).any(axis=1).sum()) == count


def test_a_model_beyond_the_limit_keeps_the_given_text(
    given: CalibrationTokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so, with both sizes; half of nothing asked for needs no notice."""
    make_checkpoint(tmp_path / "model", "llama")
    monkeypatch.setattr(self_text, "RESIDENT_BYTES", 1e4)
    checkpoint = open_checkpoint(tmp_path / "model")
    kept = with_self_text(checkpoint, given, 0.5, 0, silent)
    assert kept.sha256 == given.sha256
    (notice,) = kept.notices
    assert "calibrated only on the given text" in notice
    assert with_self_text(checkpoint, given, 0.0, 0, silent).notices == ()
