"""transformers is the reference for how tokens are chosen: penalty, temperature and cut-offs, and their order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as genai
import pytest
import torch

from curconvert.jobs.export import export
from curconvert.options.source import SourceOptions
from curconvert_runtime import GenerationOptions, load
from curconvert_runtime.serve.sampling import Sampling, choose, likely
from support.clients import genai_here
from support.families import VOCABULARY, TinyModel, make_checkpoint

PROMPTS = ([5, 9, 33, 7], [8, 9, 33, 7, 60, 11, 12], [22])
NEW = 24
SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"temperature": 2.0, "top_k": 5},
    {"top_k": 0, "top_p": 0.8},
    {"temperature": 0.6, "top_p": 0.9},
    {"temperature": 1.5, "top_k": 20, "top_p": 0.7, "min_p": 0.1},
    {"top_k": 0, "min_p": 0.05},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.8, "temperature": 0.7, "top_k": 20, "top_p": 0.8},
    {"top_k": 0, "top_p": 0.01},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_checkpoint(tmp_path_factory.mktemp("sampling") / "model", "llama")


def reference(model: TinyModel, ids: list[int], logits: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """Return the probabilities from which transformers' generate would draw."""
    config, _ = model.oracle._prepare_generation_config(None, do_sample=True, **settings)
    seen = torch.tensor([ids])
    kwargs = {"attention_mask": torch.ones_like(seen)}
    processors = model.oracle._get_logits_processor(config, seen.shape[1], seen, device="cpu", model_kwargs=kwargs)
    scores = processors(seen, torch.from_numpy(logits)[None])
    found: np.ndarray = torch.softmax(scores.double(), -1)[0].numpy()
    return found


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
def test_tokens_have_the_probabilities_of_transformers(
    model: TinyModel, settings: dict[str, Any], rounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random logits, some of them equal: the same ids remain, with the same probabilities."""
    rng = np.random.default_rng(0)
    sampling = Sampling.of({}, {"do_sample": True, **settings})
    drawn: list[np.ndarray] = []

    def watched(logits: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
        order, weights = likely(logits, sampling)
        drawn.append(np.zeros(VOCABULARY))
        drawn[-1][order] = weights / weights.sum()
        return order, weights

    monkeypatch.setattr("curconvert_runtime.serve.sampling.likely", watched)
    for _ in range(20):
        logits = (3 * rng.standard_normal(VOCABULARY)).astype(np.float32)
        logits = logits.round() if rounded and not settings.get("top_p") else logits
        seen = rng.integers(0, VOCABULARY, 12).tolist()
        choose(logits, sampling, seen, rng)
        np.testing.assert_allclose(drawn[-1], reference(model, seen, logits, settings), atol=1e-6)


def theirs(model: TinyModel, prompt: list[int], **settings: Any) -> list[int]:
    ids = torch.tensor([prompt])
    output = model.oracle.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=0, **settings
    )
    found: list[int] = output[0, len(prompt) :].tolist()
    return found[: found.index(2)] if 2 in found else found


@pytest.mark.parametrize("penalty", [1.1, 1.3, 0.9])
def test_greedy_text_with_a_penalty_is_that_of_transformers(model: TinyModel, tmp_path: Path, penalty: float) -> None:
    """The file's penalty counts in the runtime, alone and in a batch, and in onnxruntime-genai."""
    settings = {"eos_token_id": 2, "repetition_penalty": penalty, "do_sample": True, "temperature": 0.7, "top_p": 0.8}
    (model.folder / "generation_config.json").write_text(json.dumps(settings))
    export(SourceOptions(model.folder), tmp_path / "out")
    expected = [theirs(model, prompt, repetition_penalty=penalty) for prompt in PROMPTS]
    assert expected != [theirs(model, prompt) for prompt in PROMPTS]
    for graph in ("portable", "fused"):
        session = load(tmp_path / "out", graph=graph, threads=1)
        options = GenerationOptions(max_new_tokens=NEW, temperature=0)
        assert [list(row.ids) for row in session.generate(list(PROMPTS), options)] == expected
        assert [list(session.generate(prompt, options).ids) for prompt in PROMPTS] == expected
    served = genai.Model(str(tmp_path / "out"))
    for prompt, wanted in zip(PROMPTS, expected, strict=True):
        found = genai_here(served, prompt, NEW)
        assert (found[: found.index(2)] if 2 in found else found) == wanted
