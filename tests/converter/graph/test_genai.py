"""onnxruntime-genai loads the fused graph with our genai_config.json and generates what transformers generates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai
import pytest
import torch

from curconvert.graph import build_graphs, genai_config, save_graphs
from support.families import FAMILIES, MIXED, TinyModel, compress, make_checkpoint

PROMPTS = ([5, 9, 33, 7], [8, 9, 33, 7, 60, 11, 12], [22, 33, 44, 55, 66, 77])


def serve(model: TinyModel, graph: str = "model.fused.onnx") -> list[list[int]]:
    """Generate greedily for the prompts, as one batch padded at the right."""
    (model.folder / "genai_config.json").write_text(json.dumps(genai_config(model.config, graph=graph)))
    width = max(len(prompt) for prompt in PROMPTS)
    batch = np.array([prompt + [0] * (width - len(prompt)) for prompt in PROMPTS], dtype=np.int32)
    served = genai.Model(str(model.folder))
    parameters = genai.GeneratorParams(served)
    parameters.set_search_options(max_length=width + 12, batch_size=len(PROMPTS), do_sample=False)
    generator = genai.Generator(served, parameters)
    generator.append_tokens(batch)
    while not generator.is_done():
        generator.generate_next_token()
    return [generator.get_sequence(index)[width:].tolist() for index in range(len(PROMPTS))]


def expected(model: TinyModel) -> list[list[int]]:
    """Generate greedily with transformers, each prompt by itself."""
    results = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        output = model.oracle.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
        )
        results.append(output[0, len(prompt) :].tolist())
    return results


def same_until_the_end(found: list[int], wanted: list[int], eos: int) -> bool:
    """Compare up to the first end-of-sequence token, after which clients pad as they like."""
    length = wanted.index(eos) if eos in wanted else len(wanted)
    return found[:length] == wanted[:length]


@pytest.mark.parametrize("family", FAMILIES)
def test_genai_generates_what_transformers_generates(family: str, tmp_path: Path) -> None:
    """Greedy generation of a batch of unequal prompts, compressed in every form, over the fused graph."""
    model = compress(make_checkpoint(tmp_path / "dense", family), tmp_path / "mixed", forms=MIXED)
    save_graphs(build_graphs(model.config, model.tensors, model.forms), model.folder)
    for found, wanted in zip(serve(model), expected(model), strict=True):
        assert same_until_the_end(found, wanted, model.config["eos_token_id"])


def test_genai_serves_the_portable_graph_too(tmp_path: Path) -> None:
    """The portable graph has the same inputs; its cache is not shared."""
    model = make_checkpoint(tmp_path, "llama")
    save_graphs(build_graphs(model.config, model.tensors, {}), model.folder)
    for found, wanted in zip(serve(model, "model.onnx"), expected(model), strict=True):
        assert same_until_the_end(found, wanted, model.config["eos_token_id"])


def test_token_ids_of_the_generation_config_win(tmp_path: Path) -> None:
    """generation_config.json is where instruction models list their several end tokens."""
    model = make_checkpoint(tmp_path, "llama")
    content = genai_config(model.config, generation_config={"eos_token_id": [2, 7], "pad_token_id": None})
    assert content["model"]["eos_token_id"] == [2, 7]
    assert content["model"]["pad_token_id"] == 0
    assert content["model"]["bos_token_id"] == 1
