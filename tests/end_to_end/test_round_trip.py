"""An artifact that went through the hub's cache, hard links and an editor of its card still gives the same text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import onnxruntime_genai
import pytest
import torch
from transformers import AutoModelForCausalLM

from curconvert.jobs.convert import convert
from curconvert.options.quantization import Quantization
from curconvert.options.source import SourceOptions
from curconvert_runtime import GenerationOptions, load
from support.clients import genai_here, optimum, transformers4
from support.command_line import call
from support.families import make_checkpoint
from support.folders import hard_linked, in_hub_cache
from support.tiny_runs import add_tokenizer, tiny_options, token_file

PROMPT = "The end"
IDS = [3 + ord(character) - 32 for character in PROMPT]
NEW = 6
WAYS = ("hub", "hard links", "subfolder of the hub")
METHODS: dict[str, dict[str, Any]] = {
    "cur": {"rank": 8},
    "pifa": {"density": 0.7, "rank": None},
    "float16": {"method": "svd-llm", "density": 0.7, "rank": None, "dtype": "float16"},
    "int4": {"method": "dense", "rank": None, "quantization": Quantization("int4", 32)},
}


def made(home: Path, family: str, name: str) -> Path:
    """Convert a tiny model; its end token never comes, so that all answers have the same length."""
    make_checkpoint(home / "source", family, eos_token_id=None)
    add_tokenizer(home / "source")
    options = tiny_options(token_file(home / "ids.safetensors"), **{"method": name, **METHODS[name]})
    convert(SourceOptions(str(home / "source")), home / "out", options)
    return home / "out"


def sent(artifact: Path, way: str, home: Path) -> Path:
    """Return what somebody else gets: links in place of files, another card, a license."""
    if way == "hard links":
        folder = hard_linked(artifact, home / "copy")
    elif way == "hub":
        folder = in_hub_cache(artifact, home)
    else:
        whole = in_hub_cache(artifact, home)
        folder = whole / "curconvert"
        folder.mkdir()
        for link in [path for path in whole.iterdir() if path.is_symlink()]:
            (folder / link.name).symlink_to(Path("../../../blobs") / link.readlink().name)
            link.unlink()
    card = folder / "README.md"
    text = "---\nlicense: mit\n---\n" + card.read_text(encoding="utf-8")
    card.unlink()  # a link's target stays as it is
    card.write_text(text, encoding="utf-8")
    (folder / "LICENSE").write_text("MIT", encoding="utf-8")
    (folder / "report.html").unlink()
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny artifact as `convert` wrote it."""
    return made(tmp_path_factory.mktemp("original"), "llama", "cur")


def by_onnxruntime(folder: Path, graph: str) -> list[int]:
    """Continue the prompt greedily with plain onnxruntime, without a cache."""
    session = onnxruntime.InferenceSession(str(folder / graph), providers=["CPUExecutionProvider"])
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    ids = list(IDS)
    for _ in range(NEW):
        tokens = np.array([ids])
        feeds = {"input_ids": tokens, "attention_mask": np.ones_like(tokens), "position_ids": np.arange(len(ids))[None]}
        for entry in session.get_inputs():
            if entry.name.startswith("past"):
                feeds[entry.name] = np.zeros((1, entry.shape[1], 0, entry.shape[3]), types[entry.type])
        ids.append(int(session.run(["logits"], feeds)[0][0, -1].argmax()))
    return ids[len(IDS) :]


def by_genai(folder: Path) -> list[int]:
    """Continue the prompt greedily with onnxruntime-genai."""
    return genai_here(onnxruntime_genai.Model(str(folder)), IDS, NEW)


def by_transformers(folder: Path) -> list[int]:
    """Continue the prompt greedily with transformers."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([IDS])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    return list(out[0, len(IDS) :].tolist())


def answers(folder: Path, loads_in_torch: bool = True) -> Iterator[tuple[str, list[int]]]:
    """Yield each client's continuation of the prompt."""
    for graph in ("portable", "fused"):
        session = load(folder, graph=graph, full_check=True)
        yield f"curconvert, {graph}", list(session.generate(PROMPT, GenerationOptions(max_new_tokens=NEW)).ids)
    for graph in ("model.onnx", "model.fused.onnx"):
        yield f"onnxruntime, {graph}", by_onnxruntime(folder, graph)
    yield "genai", by_genai(folder)
    if loads_in_torch:
        yield "transformers", by_transformers(folder)


@pytest.mark.parametrize("way", WAYS)
def test_every_client_gives_the_same_text(original: Path, tmp_path: Path, way: str) -> None:
    """Links, another card and a license change no answer of any client, and `verify` passes."""
    folder = sent(original, way, tmp_path)
    expected = list(load(original).generate(PROMPT, GenerationOptions(max_new_tokens=NEW)).ids)
    assert len(expected) == NEW
    found = dict(answers(folder))
    assert found == dict.fromkeys(found, expected)
    done = call("verify", folder, "--quiet")
    assert done.exit_code == 0, done.output


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3"])
def test_every_kind_of_artifact_comes_through_the_hub(tmp_path: Path, family: str, name: str) -> None:
    """Other forms, float16 and integers, in families of other shapes."""
    artifact = made(tmp_path, family, name)
    before = dict(answers(artifact, loads_in_torch=name != "int4"))
    assert dict(answers(sent(artifact, "hub", tmp_path), loads_in_torch=name != "int4")) == before


@pytest.mark.slow
@pytest.mark.clients
def test_other_versions_of_clients_read_links(original: Path, tmp_path: Path) -> None:
    """optimum, and transformers 4.57 with its own torch."""
    folder = sent(original, "hub", tmp_path)
    assert optimum([folder], [IDS], NEW) == optimum([original], [IDS], NEW)
    assert transformers4([folder], [IDS], NEW) == transformers4([original], [IDS], NEW)
