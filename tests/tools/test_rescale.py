"""What tools/rescale.py changes in a model, and what it leaves as it is."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from curconvert.checkpoint import open_checkpoint
from support.families import make_checkpoint
from support.tools import load_tool


@pytest.fixture(scope="module")
def rescale() -> ModuleType:
    """The script as a module."""
    return load_tool("rescale")


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "smollm3"])
def test_the_model_computes_the_same(tmp_path: Path, rescale: ModuleType, family: str) -> None:
    """In float64, grouped heads and biases included; every matrix of a block has other values."""
    model = make_checkpoint(tmp_path / "model", family)
    checkpoint = open_checkpoint(model.folder)
    changed = dict(rescale.rescaled(checkpoint, 0, torch.float64))
    ids = torch.arange(3, 40)[None]
    oracle = model.oracle.double()
    with torch.no_grad():
        expected = oracle(input_ids=ids).logits
        missing = oracle.load_state_dict(changed, strict=False)
        found = oracle(input_ids=ids).logits
    assert not missing.unexpected_keys
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for name, values in changed.items():
        same = torch.equal(values, checkpoint.read(name).double())
        assert same == (".layers." not in name or name.endswith(("q_proj.bias", "k_proj.bias", "_norm.weight"))), name


def test_factors_depend_on_the_seed_and_the_name(tmp_path: Path, rescale: ModuleType) -> None:
    """The same seed gives the same model."""
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "model", "llama").folder)
    name = "model.layers.1.mlp.up_proj.weight"
    first, again, other = (dict(rescale.rescaled(checkpoint, seed, torch.bfloat16))[name] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
