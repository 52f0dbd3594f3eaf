"""Artifacts of real architectures, graphs from the converter: the runtime's answers are transformers' answers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from curconvert.graph import build_graphs, save_graphs
from curconvert_runtime import GenerationOptions, Session, load
from curconvert_runtime.serve import decoding
from support.families import MIXED, VOCABULARY, TinyModel, compress, make_checkpoint
from support.tiny_artifact import reseal, toy_manifest

PROMPTS = [[5, 9, 33, 7, 60, 41, 12, 8, 90], [17], [44, 3, 70, 21]]
NEW_TOKENS = 12
MODELS = {
    "llama-cur": ("llama", torch.float32),
    "llama-dense": ("llama", torch.float32),
    "llama-half": ("llama", torch.float16),
    "llama-bfloat16": ("llama", torch.bfloat16),
    "qwen2-mixed": ("qwen2", torch.float32),
    "mistral-window": ("mistral", torch.float32),
    "gemma2-softcap": ("gemma2", torch.float32),
}


@dataclass(frozen=True)
class Sealed:
    """An artifact folder and the transformers model that computes the same function."""

    folder: Path
    oracle: Any


def seal(model: TinyModel, dtype: torch.dtype, dense: TinyModel) -> None:
    """Put graphs and a manifest into the folder of a model that was made from a dense one."""
    save_graphs(build_graphs(model.config, model.tensors, model.forms), model.folder)
    (model.folder / "generation_config.json").unlink(missing_ok=True)
    manifest = toy_manifest()
    config = model.oracle.config
    manifest["model"].update(
        model_type=config.model_type,
        dtype=str(dtype).removeprefix("torch."),
        vocab_size=VOCABULARY,
        num_hidden_layers=config.num_hidden_layers,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        max_position_embeddings=config.max_position_embeddings,
    )
    row = manifest["matrices"][0] | {"rank": 5}
    manifest["matrices"] = [
        row
        | {"name": name, "shape": list(dense.tensors[name].shape), "form": form}
        | {"basis": "rows" if form == "interpolative" else None}
        for name, form in model.forms.items()
    ]
    (model.folder / "curconvert.json").write_text(json.dumps(manifest))
    reseal(model.folder)


@pytest.fixture(scope="module", params=MODELS)
def sealed_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    """A tiny random model of each kind, as an artifact."""
    family, dtype = MODELS[request.param]
    root = tmp_path_factory.mktemp("model")
    model = dense = make_checkpoint(root / "dense", family, dtype=dtype)
    if request.param.endswith("cur"):
        model = compress(dense, root / "cur")
    if request.param.endswith("mixed"):
        model = compress(dense, root / "mixed", forms=MIXED)
    seal(model, dtype, dense)
    return Sealed(model.folder, model.oracle)


@pytest.fixture(scope="module", params=["portable", "fused"])
def running(request: pytest.FixtureRequest, sealed_model: Sealed) -> Session:
    """The artifact under each graph."""
    return load(sealed_model.folder, graph=request.param, threads=1)


def transformers_greedy(oracle: Any, prompt: list[int]) -> list[int]:
    """Return transformers' own greedy continuation, without the end token."""
    with torch.no_grad():
        output = oracle.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=2,
        )
    ids: list[int] = output[0, len(prompt) :].tolist()
    return ids[: ids.index(2)] if 2 in ids else ids


def test_logits_of_unequal_sequences_equal_transformers(running: Session, sealed_model: Sealed) -> None:
    """Each row of a padded batch agrees with transformers run on that row alone."""
    for ids, logits in zip(PROMPTS, running.logits(PROMPTS), strict=True):
        with torch.no_grad():
            expected = sealed_model.oracle(torch.tensor([ids])).logits[0].numpy()
        np.testing.assert_allclose(logits, expected, atol=2e-4, rtol=0)


def test_a_batch_equals_its_rows(running: Session) -> None:
    """Three unequal prompts at once give the tokens that each gives alone."""
    options = GenerationOptions(max_new_tokens=NEW_TOKENS)
    batch = running.generate(PROMPTS, options)
    assert [row.ids for row in batch] == [running.generate(prompt, options).ids for prompt in PROMPTS]


def test_greedy_equals_transformers_generate(running: Session, sealed_model: Sealed) -> None:
    """The batch's tokens are those of transformers' generate, up to each row's end token."""
    batch = running.generate(PROMPTS, GenerationOptions(max_new_tokens=NEW_TOKENS))
    expected = [transformers_greedy(sealed_model.oracle, prompt) for prompt in PROMPTS]
    assert [list(row.ids) for row in batch] == expected
    assert max(map(len, expected)) == NEW_TOKENS


def test_only_the_last_columns_logits_are_computed(running: Session) -> None:
    """Asked for the last columns, the fused graph multiplies those with the vocabulary; the numbers are the same."""
    ids = np.array([PROMPTS[0]])
    everything, _ = running.forward(ids)
    for first in (-1, -2, 3):
        last, _ = running.forward(ids, first=first)
        np.testing.assert_allclose(last, everything[:, first:], atol=1e-5, rtol=0)
    assert running.trims_logits == (running.graph == "fused")


def test_plain_onnxruntime_loads_the_graphs_without_a_warning(
    sealed_model: Sealed, capfd: pytest.CaptureFixture[str]
) -> None:
    """Other clients see all logits, and nothing that they would have to know."""
    for name in ("model.onnx", "model.fused.onnx"):
        session = ort.InferenceSession(sealed_model.folder / name, providers=["CPUExecutionProvider"])
        assert session.get_overridable_initializers() == []
    assert capfd.readouterr().err == ""


def test_eight_unequal_rows_equal_transformers(running: Session, sealed_model: Sealed) -> None:
    """Eight prompts of different lengths, which end at different steps, give its tokens."""
    prompts = [np.random.default_rng(row).integers(3, VOCABULARY, 3 + 2 * row).tolist() for row in range(8)]
    batch = running.generate(prompts, GenerationOptions(max_new_tokens=NEW_TOKENS))
    assert [list(row.ids) for row in batch] == [transformers_greedy(sealed_model.oracle, row) for row in prompts]


def test_a_lone_prompt_in_pieces_equals_transformers(
    running: Session, sealed_model: Sealed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five tokens at a time, on top of those before, windows and soft caps included."""
    monkeypatch.setattr(decoding, "_PIECE_TOKENS", 5)
    prompt = np.random.default_rng(0).integers(3, VOCABULARY, 23).tolist()
    answer = running.generate(prompt, GenerationOptions(max_new_tokens=NEW_TOKENS))
    assert list(answer.ids) == transformers_greedy(sealed_model.oracle, prompt)


@pytest.mark.parametrize("graph", ["portable", "fused"])
def test_a_context_of_2048_tokens_equals_transformers(graph: str, tmp_path: Path) -> None:
    """Two long prompts of unequal length continue to the end of the context as in transformers."""
    model = make_checkpoint(tmp_path / "long", "llama", max_position_embeddings=2048)
    seal(model, torch.float32, model)
    prompts = [
        np.random.default_rng(row).integers(3, VOCABULARY, length).tolist() for row, length in enumerate((2032, 1500))
    ]
    options = GenerationOptions(max_new_tokens=17, ignore_eos=True)
    batch = load(model.folder, graph=graph, threads=1).generate(prompts, options)  # type: ignore[arg-type]
    for row, prompt in zip(batch, prompts, strict=True):
        ids = list(prompt)
        with torch.no_grad():
            logits = model.oracle(torch.tensor([[*prompt, *row.ids]])).logits[0, len(ids) - 1 : -1]
        assert list(row.ids) == logits.argmax(-1).tolist()
