"""Every form is served by optimum, onnxruntime-genai and transformers as our own torch model computes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from curconvert.blocks.stored import build_torch_model
from curconvert.jobs.convert import convert
from curconvert.options.quantization import Quantization
from curconvert.options.source import SourceOptions
from curconvert_runtime import Artifact
from curconvert_runtime.format.forms import FORMS
from support.checkpoints import make_layers_alike
from support.clients import genai, optimum, transformers4
from support.families import make_checkpoint
from support.tiny_runs import add_tokenizer, tiny_options, token_file

# Method and size of it; together they store every form.
METHODS: dict[str, dict[str, Any]] = {
    "cur": {"rank": 8},
    "pifa": {"density": 0.7, "rank": None},
    "row-id": {"density": 0.7, "rank": None},
    "svd-llm": {"density": 0.7, "rank": None},
    "neurons": {"density": 0.5, "rank": None},
    "modegpt": {"density": 0.6, "rank": None},
    "auto": {"keep": 0.7, "rank": None, "rank_multiple": 4},
    "int4": {"method": "pifa", "density": 0.7, "rank": None, "quantization": Quantization("int4", 32, asymmetric=True)},
    "int8": {"method": "dense", "rank": None, "quantization": Quantization("int8")},
    "int6": {"method": "neurons", "density": 0.5, "rank": None, "quantization": Quantization("int6", 32)},
    "int3": {"method": "dense", "rank": None, "quantization": Quantization("int3", 32, asymmetric=True)},
    "shared": {"method": "auto", "keep": 0.75, "rank": None, "rank_multiple": 2, "share": True},
}
QUANTIZED = ("int3", "int4", "int6", "int8")  # transformers refuses them
PROMPTS = [[5, 9, 30, 7], [11, 4], [8, 40, 6, 22, 31, 9, 17]]
NEW = 12
END = 2  # the tiny models' end token; genai stops before it, transformers after it


def ended(rows: list[list[int]]) -> list[list[int]]:
    """Return each answer up to its end token."""
    return [row[: row.index(END)] if END in row else row for row in rows]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One tiny Llama with grouped queries, converted by each method; one whose layers are alike, for a common R."""
    home = tmp_path_factory.mktemp("clients")
    for source in ("source", "alike"):
        make_checkpoint(home / source, "llama")
        add_tokenizer(home / source)
    make_layers_alike(home / "alike")
    tokens = token_file(home / "ids.safetensors")
    for name, size in METHODS.items():
        source = SourceOptions(str(home / ("alike" if name == "shared" else "source")))
        convert(source, home / name, tiny_options(tokens, **{"method": name, **size}))
    return {name: home / name for name in METHODS}


@pytest.fixture(scope="module")
def answers(artifacts: dict[str, Path]) -> list[list[list[int]]]:
    """transformers' greedy continuations, by method and prompt."""
    found = []
    for path in artifacts.values():
        model: Any = build_torch_model(Artifact.open(path))
        rows = []
        for row in PROMPTS:
            ids = torch.tensor([row])
            mask = torch.ones_like(ids)
            out = model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
            rows.append(out[0, len(row) :].tolist())
        found.append(rows)
    # The clients are compared over the whole length, and not on one answer that any input gives.
    assert all(len(row) == NEW or row[-1] == END for rows in found for row in rows)
    assert len({tuple(row) for rows in found for row in rows}) > len(METHODS)
    return found


def test_methods_store_every_form(artifacts: dict[str, Path]) -> None:
    """Nothing is left out."""
    forms = {matrix["form"] for path in artifacts.values() for matrix in Artifact.open(path).manifest["matrices"]}
    assert forms >= {form.name for form in FORMS.values() if form.is_compressed}
    assert any(matrix["shared"] for matrix in Artifact.open(artifacts["shared"]).manifest["matrices"])


@pytest.mark.clients
def test_optimum_serves_every_form(artifacts: dict[str, Path], answers: list[list[list[int]]]) -> None:
    """The portable graph, a left-padded batch of three."""
    served = optimum([*artifacts.values()], PROMPTS, NEW)  # an answer that ends before the others is padded
    assert [ended(rows) for rows in served] == [ended(rows) for rows in answers]


@pytest.mark.clients
def test_transformers_4_loads_every_form(artifacts: dict[str, Path], answers: list[list[list[int]]]) -> None:
    """`import curconvert` and `from_pretrained` in 4.57: no tensor missing, none left over."""
    expected = [rows for name, rows in zip(METHODS, answers, strict=True) if name not in QUANTIZED]
    assert transformers4([path for name, path in artifacts.items() if name not in QUANTIZED], PROMPTS, NEW) == expected


def test_transformers_loads_every_form_and_writes_it_back(artifacts: dict[str, Path], tmp_path: Path) -> None:
    """The same in 5, in this process; what `save_pretrained` writes gives the same logits, bit for bit."""
    ids = torch.tensor(PROMPTS[:1])
    for name, path in artifacts.items():
        if name in QUANTIZED:
            continue
        model = from_pretrained(path)
        expected = build_torch_model(Artifact.open(path))(ids).logits
        torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=1e-4)
        model.save_pretrained(tmp_path / name)
        again = from_pretrained(tmp_path / name)
        assert torch.equal(again(ids).logits, model(ids).logits)
        assert {k: v.shape for k, v in again.state_dict().items()} == {
            k: v.shape for k, v in model.state_dict().items()
        }


def from_pretrained(path: Path) -> Any:
    """Load as a user does, and refuse what transformers only warns of."""
    model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def test_genai_serves_every_form(artifacts: dict[str, Path], answers: list[list[list[int]]]) -> None:
    """The fused graph, prompt by prompt."""
    assert genai([*artifacts.values()], PROMPTS, NEW) == [ended(rows) for rows in answers]
