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


def test_special_tokens_are_those_of_the_config(tmp_path: Path) -> None:
    """Several end tokens stay a list; a token that the model lacks is left out, because genai rejects null."""
    model = make_checkpoint(tmp_path, "llama")
    content = genai_config({**model.config, "eos_token_id": [2, 7], "bos_token_id": None})["model"]
    assert (content["eos_token_id"], content["pad_token_id"]) == ([2, 7], 0)
    assert "bos_token_id" not in content


def test_sampling_is_what_genai_knows_of_the_defaults(tmp_path: Path) -> None:
    """No min_p, which it rejects; a top_k within the vocabulary; temperature only where the model samples."""
    config = make_checkpoint(tmp_path, "llama").config
    settings = {"temperature": 0.7, "min_p": 0.1, "repetition_penalty": 1.1, "top_p": 0.8}
    greedy = genai_config(config, generation_config=settings)["search"]
    sampled = genai_config(config, generation_config={**settings, "do_sample": True, "top_k": 1000})["search"]
    assert (greedy["do_sample"], greedy["repetition_penalty"]) == (False, 1.1)
    assert not greedy.keys() & {"min_p", "temperature", "top_p"}
    assert (sampled["do_sample"], sampled["top_k"], sampled["top_p"], sampled["temperature"]) == (True, 97, 0.8, 0.7)
