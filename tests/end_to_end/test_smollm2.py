"""The main job on a real model: SmolLM2-135M (dequantized Q4_1), served by real clients.

Settings are the defaults, but for less text: `make demo` runs the defaults themselves.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curconvert.blocks.stored import build_torch_model
from curconvert.checkpoint import open_checkpoint
from curconvert_runtime import Artifact, GenerationOptions, load
from support.clients import genai, optimum
from support.page_cache import read_from_disk

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS = (
    "The three things that make a bridge safe are",
    "Once upon a time, in a small village by the sea, there lived an old",
    "Water boils when",
)
NEW_TOKENS = 64
SHORT = ("--calibration-sequences", "16", "--probe-sequences", "8")
# In an order drawn anew for each round, they make a text of any length.
SENTENCES = (
    "The ferry leaves the island at seven in the morning and comes back after dark.",
    "A bridge carries its load to the ground, and the ground must not give way.",
    "My grandmother kept bees behind the house, and every summer we had honey with our bread.",
    "Water boils at a lower temperature in the mountains, so beans take longer to cook there.",
    "The committee met twice in March, but it could not agree on the price of the new school.",
    "To sharpen a knife, hold the blade at a small angle and draw it slowly across the stone.",
    "In 1854 a doctor marked each death on a map of the city and found the well that caused them.",
    "The library lends books, tools and musical instruments to everybody who lives in the valley.",
    "When the wind turns north, the fishermen pull their boats far up on the beach.",
    "A prime number has exactly two divisors: one, and the number itself.",
    "She closed the door quietly, put her boots beside the stove, and read the letter again.",
    "Rain fell for nine days, and on the tenth the river stood in the lower streets.",
)

pytestmark = pytest.mark.model


def convert(out: Path, *options: str) -> dict[str, Any]:
    """Run the command line as a user does, and return what it prints."""
    command = [sys.executable, "-m", "curconvert", str(MODEL), "-o", str(out), "--json", *SHORT, *options]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def conversion(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The main job, verification included."""
    return convert(tmp_path_factory.mktemp("smollm2") / "out")


@pytest.fixture(scope="module")
def artifact(conversion: dict[str, Any]) -> Artifact:
    """Its artifact."""
    return Artifact.open(conversion["path"])


@pytest.fixture(scope="module")
def prompts(artifact: Artifact) -> list[list[int]]:
    """Three prompts of unequal length, as token ids."""
    session = load(artifact.path)
    rows = [session.tokenizer.encode(text) for text in PROMPTS]
    assert len({len(row) for row in rows}) == len(rows)
    return [[int(token) for token in row] for row in rows]


@pytest.fixture(scope="module")
def torch_answers(artifact: Artifact, prompts: list[list[int]]) -> list[list[int]]:
    """transformers' greedy continuation, prompt by prompt, by the model built from the same factors."""
    model: Any = build_torch_model(artifact)
    answers = []
    for row in prompts:
        ids = torch.tensor([row])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
        )
        answers.append(out[0, len(row) :].tolist())
    # The clients are compared over the whole length: no row may have ended early.
    assert [len(answer) for answer in answers] == [NEW_TOKENS] * len(prompts)
    return answers


def test_parity_with_torch_is_within_a_thousandth(conversion: dict[str, Any]) -> None:
    """Both graphs agree with torch to 1e-3 in every logit, in prefill and 16 decode steps."""
    checks = {check["name"]: check for check in conversion["verification"]["checks"]}
    for name in ("torch.portable.logits", "torch.fused.logits", "parity.portable.logits", "parity.fused.logits"):
        assert checks[name]["passed"]
        assert checks[name]["value"] <= 1e-3
    assert conversion["verification"]["passed"]


def test_conversion_stays_below_a_gigabyte(conversion: dict[str, Any]) -> None:
    """Everything before the verification, torch included, needs less than 1 GB."""
    assert conversion["peak_memory_bytes"] < 1e9


_SERVE = """
import sys
from curconvert_runtime import GenerationOptions, load
from curconvert.base.machine import peak_memory
session = load(sys.argv[1], full_check=True)
session.tokenizer.encode("a word")
completion = session.generate([list(range(100, 612))], GenerationOptions(max_new_tokens=64, temperature=0.0))
print(peak_memory())
"""


@pytest.mark.parametrize("what", ["compressed", "dense"])
def test_serving_takes_little_more_than_the_weights(what: str, artifact: Artifact, tmp_path: Path) -> None:
    """Loaded, 512 tokens read and 64 written by the fused graph: under 1.35 times the weights' bytes, and the cache.

    From the first start on: all files are hashed, and come from disk, as after a restart of the machine.
    """
    if what == "dense":
        command = [sys.executable, "-m", "curconvert", "export", str(MODEL), "-o", str(tmp_path / "dense"), "--quiet"]
        subprocess.run([*command, "--dtype", "float32"], check=True)
        artifact = Artifact.open(tmp_path / "dense")
    model = artifact.model
    cache = 2 * 4 * model["num_hidden_layers"] * model["num_key_value_heads"] * model["head_dim"] * (512 + 64)
    read_from_disk(artifact.file("model.safetensors"))
    serve = [sys.executable, "-c", _SERVE, str(artifact.path)]
    done = subprocess.run(serve, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1.35 * artifact.file("model.safetensors").stat().st_size + cache


def test_graphs_are_small(artifact: Artifact) -> None:
    """The two graphs hold no weights: together they are under 3 MB."""
    assert sum((artifact.path / name).stat().st_size for name in ("model.onnx", "model.fused.onnx")) < 3e6


def test_columns_and_rows_are_the_sources_bit_for_bit(artifact: Artifact) -> None:
    """C = W[:, cols] and R = W[rows] in the source's own bits."""
    source = open_checkpoint(MODEL)
    factored = [name.removesuffix("C") for name in artifact.tensors if name.endswith(".C")]
    assert len(factored) == 18  # q and gate of 9 layers; k would not shrink by 5 %
    for stem in factored:
        weight = source.read(f"{stem}weight").numpy()
        np.testing.assert_array_equal(artifact.tensor(f"{stem}C"), weight[:, artifact.tensor(f"{stem}cols")])
        np.testing.assert_array_equal(artifact.tensor(f"{stem}R"), weight[artifact.tensor(f"{stem}rows")])


def test_parameters_in_the_manifest_are_the_stored_numbers(artifact: Artifact) -> None:
    """Every stored number counts, indices apart."""
    stored = sum(int(np.prod(t.shape)) for n, t in artifact.tensors.items() if not n.endswith((".rows", ".cols")))
    assert artifact.model["parameters_before"] == 134_515_008
    assert artifact.model["parameters_after"] == stored


@pytest.mark.parametrize("graph", ["portable", "fused"])
def test_runtime_generates_what_torch_generates(
    artifact: Artifact, prompts: list[list[int]], torch_answers: list[list[int]], graph: Any
) -> None:
    """Our runtime's greedy tokens are torch's, one by one and as a padded batch of three."""
    session = load(artifact.path, graph=graph)
    options = GenerationOptions(max_new_tokens=NEW_TOKENS)
    batch = session.generate(prompts, options)
    assert isinstance(batch, list)
    assert [list(done.ids) for done in batch] == torch_answers
    alone = session.generate(prompts[1], options)
    assert not isinstance(alone, list)
    assert list(alone.ids) == torch_answers[1]


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["portable", "fused"])
def test_eight_rows_and_a_long_context_are_torchs(artifact: Artifact, graph: Any) -> None:
    """Eight prompts of 10 to 220 tokens at once, and one of 2,000: every token is the likeliest that torch knows."""
    session = load(artifact.path, graph=graph)
    rng = np.random.default_rng(0)
    text = " ".join(SENTENCES[number] for _ in range(10) for number in rng.permutation(len(SENTENCES)))
    ids = session.tokenizer.encode(text)
    assert len(ids) >= 2000
    eight = [[int(token) for token in ids[100 * row : 100 * row + 10 + 30 * row]] for row in range(8)]
    long = [int(token) for token in ids[:2000]]
    options = GenerationOptions(max_new_tokens=NEW_TOKENS, ignore_eos=True)
    model: Any = build_torch_model(artifact)
    for prompts in (eight, [long]):
        for prompt, done in zip(prompts, session.generate(prompts, options), strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *done.ids]])).logits[0, len(prompt) - 1 : -1]
            assert list(done.ids) == logits.argmax(-1).tolist()


@pytest.mark.clients
def test_optimum_generates_what_torch_generates(
    artifact: Artifact, prompts: list[list[int]], torch_answers: list[list[int]]
) -> None:
    """optimum's ORTModelForCausalLM serves the portable graph, with a left-padded batch of three."""
    assert optimum([artifact.path], prompts, NEW_TOKENS) == [torch_answers]


def test_genai_generates_what_torch_generates(
    artifact: Artifact, prompts: list[list[int]], torch_answers: list[list[int]]
) -> None:
    """onnxruntime-genai loads the folder as it is and serves the fused graph."""
    assert genai([artifact.path], prompts, NEW_TOKENS) == [torch_answers]


@pytest.mark.slow
def test_half_precision_parity(tmp_path: Path) -> None:
    """In float16 both graphs stay within 5e-2 of the float32 torch model of the same factors (and within 1e-3)."""
    result = convert(tmp_path / "out", "--dtype", "float16")
    checks = {check["name"]: check for check in result["verification"]["checks"]}
    for name in ("torch.portable.logits", "torch.fused.logits"):
        assert checks[name]["value"] <= 5e-2
        assert checks[name]["passed"]
