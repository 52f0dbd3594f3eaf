"""A multimodal checkpoint becomes the artifact of its language model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from curconvert.jobs.export import export
from curconvert.options.source import SourceOptions
from curconvert_runtime.format.files import MANIFEST
from curconvert_runtime.serve.session import load
from support.wrappers import save_wrapper, text_logits, tiny_wrapper


@pytest.mark.parametrize(
    ("model_type", "family"),
    [("gemma3", "gemma3_text"), ("qwen2_5_vl", "qwen2"), ("smolvlm", "llama")],
)
def test_the_graph_computes_what_the_whole_model_computes_on_text(model_type: str, family: str, tmp_path: Path) -> None:
    """The exported graph has the logits of transformers' multimodal class, to 10⁻⁵ of the largest one."""
    model = tiny_wrapper(model_type)
    found = export(SourceOptions(str(save_wrapper(model, tmp_path / "model"))), tmp_path / "out")
    ids = torch.randint(3, 90, (1, 12), generator=torch.Generator().manual_seed(1))
    expected = text_logits(model, ids).numpy()
    session = load(tmp_path / "out", graph="portable")
    past = session.allocate_cache(1, ids.shape[1])
    logits, _ = session.forward(ids.numpy(), np.ones_like(ids.numpy()), past=past)
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["model"]["model_type"] == family
    assert any("only the language model" in notice for notice in found.notices)
