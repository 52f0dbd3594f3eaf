"""Scores of decoder blocks by their definitions, in NumPy, and on a whole model of transformers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from curconvert import SourceOptions, convert
from curconvert.calibration.original import Watched, run_original
from curconvert.calibration.text import load_tokens
from curconvert.checkpoint import open_checkpoint
from curconvert.selection.scores import SCORES, LayerScorer, angular_distances, effective_rank, influences
from support.families import make_checkpoint
from support.tiny_runs import manifest_of, tiny_options, token_file

States = NDArray[np.float64]


def oracle(score: str, before: States, after: States) -> float:
    """Each definition spelled out, token by token."""
    pairs = list(zip(before.reshape(-1, before.shape[-1]), after.reshape(-1, after.shape[-1]), strict=True))
    if score == "influence":
        return 1 - float(np.mean([a @ b / math.sqrt((a @ a) * (b @ b)) for a, b in pairs]))
    if score == "angular":
        last = zip(before[:, -1], after[:, -1], strict=True)
        return float(np.mean([math.acos(a @ b / math.sqrt((a @ a) * (b @ b))) / math.pi for a, b in last]))
    unit = np.array([b / math.sqrt(b @ b) for _, b in pairs])
    p = np.linalg.svd(unit, compute_uv=False) ** 2
    p = p[p > 1e-15 * p[0]] / p.sum()
    return math.exp(-sum(x * math.log(x) for x in p))


class Turn(nn.Module):
    """A block that mixes features and ignores what else it is given."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = torch.randn(size, size, generator=torch.Generator().manual_seed(0))

    def forward(self, hidden: torch.Tensor, mask: None = None) -> torch.Tensor:
        return hidden + (hidden @ self.weight).tanh()


@pytest.mark.parametrize("score", SCORES)
def test_batches_of_unequal_size_count_by_their_tokens(score: str) -> None:
    """One number for all of them; the next block starts anew."""
    generator = torch.Generator().manual_seed(1)
    layer, scorer = Turn(6), LayerScorer(score)
    for scale in (1.0, 5.0):
        batches = [scale * torch.randn(shape, generator=generator) for shape in ((4, 5, 6), (1, 5, 6))]
        with scorer.watching(layer):
            for batch in batches:
                layer(batch, mask=None)
        before = torch.cat(batches)
        expected = oracle(score, before.double().numpy(), layer(before).double().numpy())
        assert scorer.scores[-1] == pytest.approx(expected, rel=1e-6)
    assert len(scorer.scores) == 2
    assert not layer._forward_hooks


@pytest.mark.parametrize("score", SCORES)
def test_scores_of_a_model_are_those_of_transformers(tmp_path: Path, score: str) -> None:
    """Every block, against hooks on the whole model; the conversion takes the inner ones with the lowest."""
    model = make_checkpoint(tmp_path / "model", "llama", num_hidden_layers=5)
    options = tiny_options(token_file(tmp_path / "ids.safetensors"), layers=f"{score}:2")
    tokens = load_tokens(options.calibration)
    found = run_original(open_checkpoint(model.folder), tokens, Watched(scores=[score])).scores
    expected: list[float] = []

    def hook(_layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        after = output if isinstance(output, torch.Tensor) else output[0]
        expected.append(oracle(score, inputs[0].double().numpy(), after.double().numpy()))

    for layer in model.oracle.model.layers:
        layer.register_forward_hook(hook)
    with torch.inference_mode():
        model.oracle(input_ids=torch.from_numpy(tokens.calibration))
    assert list(found) == [score]
    np.testing.assert_allclose(found[score], expected, rtol=1e-4)

    convert(SourceOptions(str(model.folder)), tmp_path / "out", options, verification=None)
    rows = manifest_of(tmp_path / "out")["matrices"]
    chosen = {int(row["name"].split(".")[2]) for row in rows if row["form"] != "dense"}
    assert chosen == {1 + int(i) for i in np.argsort(expected[1:-1])[:2]}


def test_equal_and_opposite_states_lie_at_the_ends_of_the_scale() -> None:
    """Rounding past ±1 is clipped, so that no distance is nan."""
    state = np.full((1, 1, 5), 0.1)
    for factor, angle, influence in ((3, 0.0, 0.0), (-7, 1.0, 2.0)):
        assert angular_distances(state, state * factor) == pytest.approx(angle, abs=1e-7)
        assert influences(state, state * factor) == pytest.approx(influence, abs=1e-12)


def test_the_effective_rank_counts_directions() -> None:
    """n for equal eigenvalues, 1 for a single one, and p log p in between."""
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))[0]
    assert effective_rank(3 * np.eye(6)) == pytest.approx(6)
    assert effective_rank(turn @ np.diag([7.0, 0, 0, 0, 0, 0]) @ turn.T) == pytest.approx(1)
    assert effective_rank(turn @ np.diag([2.0, 1, 1, 0, 0, 0]) @ turn.T) == pytest.approx(math.exp(1.5 * math.log(2)))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("value", [0.0, math.nan])
def test_dead_and_damaged_states_do_not_stop_the_pass(score: str, value: float) -> None:
    """A dead block has a finite score; damage is reported where it can be named, at the matrix behind it."""
    scorer = LayerScorer(score)
    layer = nn.Identity()
    with scorer.watching(layer):
        layer(torch.full((2, 3, 4), value))
    assert math.isfinite(scorer.scores[0]) == (value == 0.0)
