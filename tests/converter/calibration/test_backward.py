"""Fisher information of weight rows, against autograd with a weight of its own for every token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from curconvert import SourceOptions, convert
from curconvert.base.errors import InputError
from curconvert.base.progress import silent
from curconvert.blocks.stream import BlockStream
from curconvert.calibration.backward import BackwardPass
from curconvert.calibration.evidence import Evidence
from curconvert.calibration.text import load_tokens
from curconvert.checkpoint import open_checkpoint
from support.families import VOCABULARY, make_checkpoint
from support.tiny_runs import stored_tensors, tiny_options, token_file

STEM = "model.layers.1."
LINEARS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")


class PerToken(nn.Module):
    """A linear in which every token has a copy of the weight, so that autograd gives each token's own gradient."""

    def __init__(self, linear: nn.Linear, tokens: int) -> None:
        super().__init__()
        self.weights = linear.weight.detach().expand(tokens, -1, -1).clone().requires_grad_()
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.einsum("tmn,tn->tm", self.weights, x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return y if self.bias is None else y + self.bias


def go_back(folder: Path, evidence: Evidence, ids: torch.Tensor, names: list[str]) -> BlockStream:
    stream = BlockStream(open_checkpoint(str(folder)))
    hidden = [stream.embed(ids)]
    backward = BackwardPass(names, 5, evidence, silent)
    for index in range(stream.num_layers):
        with stream.block(index) as block:
            backward.advance(block, hidden)
    backward.finish(stream, hidden)
    return stream


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_rows_hold_the_mean_square_of_each_tokens_weight_gradient(tmp_path: Path, family: str) -> None:
    """Summed over the row; tokens are drawn from the model itself."""
    model = make_checkpoint(tmp_path / "model", family)
    ids = torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))
    (tmp_path / "evidence").mkdir()
    evidence = Evidence(tmp_path / "evidence")
    go_back(model.folder, evidence, ids, [f"{STEM}{linear}.weight" for linear in LINEARS])
    # The first block has no target: it is not gone back through, and no hidden states of it are left.
    assert {path.name for path in (tmp_path / "evidence").iterdir()} == {
        f"rows.{STEM}{linear}.weight.npy" for linear in LINEARS
    }
    whole: Any = model.oracle
    copies = {}
    for linear in LINEARS:
        parent, _, name = f"{STEM}{linear}".rpartition(".")
        copies[linear] = PerToken(whole.get_submodule(f"{STEM}{linear}"), ids.numel())
        setattr(whole.get_submodule(parent), name, copies[linear])
    rows = whole(input_ids=ids).logits.log_softmax(-1).flatten(0, 1)
    drawn = torch.multinomial(rows.detach().exp(), 1, generator=torch.Generator().manual_seed(5))
    rows.gather(1, drawn).sum().backward()
    for linear, copy in copies.items():
        assert copy.weights.grad is not None
        expected = copy.weights.grad.double().square().mean(dim=0).sum(dim=1).numpy()
        np.testing.assert_allclose(evidence.fisher_rows(f"{STEM}{linear}.weight"), expected, rtol=1e-3)


def test_states_that_overflow_are_refused(tmp_path: Path) -> None:
    """Nothing can be drawn from a model that gives no numbers."""
    model = make_checkpoint(tmp_path, "llama")
    stream = BlockStream(open_checkpoint(model.folder))
    hidden = [stream.embed(torch.ones((1, 4), dtype=torch.int64))]
    backward = BackwardPass([f"{STEM}mlp.up_proj.weight"], 0, Evidence(tmp_path), silent)
    with stream.block(0) as block:
        backward.advance(block, hidden)
    hidden[0][0, 1, 2] = torch.inf
    with pytest.raises(InputError, match="hidden states overflow on the calibration text"):
        backward.finish(stream, hidden)


@pytest.mark.parametrize("layers", ["1", "influence:1"])
def test_fwsvd_weights_rows_by_their_information(tmp_path: Path, layers: str) -> None:
    """The stored product is the truncated SVD of diag(f)^½ W, scaled back; only the chosen layer is touched."""
    model = make_checkpoint(tmp_path / "model", "llama", num_hidden_layers=3)
    options = tiny_options(token_file(tmp_path / "ids.safetensors"), "fwsvd", layers=layers, rank=5)
    result = convert(SourceOptions(str(model.folder)), tmp_path / "out", options, verification=None)
    assert result.plan is not None
    assert result.plan.layers == (1,)
    (tmp_path / "evidence").mkdir()
    evidence, name = Evidence(tmp_path / "evidence"), f"{STEM}self_attn.q_proj"
    ids = torch.from_numpy(load_tokens(options.calibration).calibration)
    stream = BlockStream(open_checkpoint(model.folder))
    hidden = [stream.embed(ids[:8]), stream.embed(ids[8:])]
    backward = BackwardPass([f"{name}.weight"], options.seed, evidence, silent)
    for index in range(3):
        with stream.block(index) as block:
            backward.advance(block, hidden)
    backward.finish(stream, hidden)
    root = np.sqrt(evidence.fisher_rows(f"{name}.weight"))[:, None]
    weight = model.oracle.get_submodule(name).weight.detach().double().numpy()
    left, sigma, right = np.linalg.svd(root * weight, full_matrices=False)
    stored = stored_tensors(tmp_path / "out")
    product = (stored[f"{name}.A"].double() @ stored[f"{name}.B"].double()).numpy()
    np.testing.assert_allclose(product, left[:, :5] * sigma[:5] @ right[:5] / root, atol=1e-5)
