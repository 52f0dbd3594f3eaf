"""The README tells the truth: its Python runs, its clients agree, its command lines parse."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from curconvert.blocks.stored import build_torch_model
from curconvert.cli import main
from curconvert.families.family import SUPPORTED_FAMILIES
from curconvert.jobs.convert import convert
from curconvert.jobs.parity import check_slices
from curconvert.jobs.verify import verify_artifact
from curconvert.options.quantization import Quantization
from curconvert.options.source import SourceOptions
from curconvert_runtime import Artifact
from curconvert_runtime.checks.verification import VerifyOptions
from curconvert_runtime.format.forms import form_of
from curconvert_runtime.format.forms.form import Shared
from support.checkpoints import make_layers_alike
from support.conversions import convert_tiny
from support.documents import PACKAGES, ROOT, block, commands, pages, run_step, steps
from support.families import make_checkpoint
from support.tiny_runs import tiny_options, token_file

DOCUMENTS = tuple(pages())
OPTIMUM = ROOT / ".venv-optimum" / "bin" / "python"
SERVE = "docs/guides/serve.md"
TOKENS = 24
END = 0


def make_tokenizer(folder: Path) -> None:
    """Write a tokenizer with a token per printable ASCII character, so that whatever is generated is text."""
    printable = ["Ġ", *map(chr, range(ord("!"), ord("~") + 1))]  # Ġ is how byte-level tokenizers spell a space
    vocabulary = {text: number for number, text in enumerate(["</s>", *printable, "Th"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("T", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}')


def run(code: str, folder: Path, python: str | Path = sys.executable, packages: str = PACKAGES) -> str:
    """Run a block as a program in a folder and return what it prints."""
    environment = os.environ | {"PYTHONPATH": packages, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [python, "-c", code], cwd=folder, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `out/`, made by the README's own conversion code from a tiny random Llama."""
    root = tmp_path_factory.mktemp("readme")
    make_checkpoint(root / "path/to/model", "llama", num_hidden_layers=4, max_position_embeddings=256, eos_token_id=END)
    make_tokenizer(root / "path/to/model")
    printed = run(block("convert").replace('"auto", keep=0.9', '"cur", rank=6'), root)
    assert printed.splitlines()[-1].startswith("True ")
    return root


@pytest.fixture(scope="module")
def answer(folder: Path) -> str:
    """What our runtime prints."""
    text = run(block("runtime", SERVE), folder)
    assert len(text.strip()) > TOKENS // 2
    return text


@pytest.mark.parametrize("graph", ["model.onnx", "model.fused.onnx"])
def test_plain_onnxruntime_says_what_our_runtime_says(folder: Path, answer: str, graph: str) -> None:
    """The guide's loop over plain onnxruntime gives the runtime's text with either graph."""
    assert run(block("onnxruntime", SERVE).replace("model.onnx", graph), folder) == answer


def test_genai_says_what_our_runtime_says(folder: Path, answer: str) -> None:
    """onnxruntime-genai loads the folder as it is and gives the same text."""
    assert run(block("genai", SERVE), folder) == answer


def test_transformers_says_what_our_runtime_says(folder: Path, answer: str) -> None:
    """transformers 5 gives the same text."""
    assert run(block("transformers", SERVE), folder) == answer


@pytest.mark.clients
def test_transformers_4_says_what_our_runtime_says(folder: Path, answer: str) -> None:
    """And so does 4.57."""
    assert run(block("transformers", SERVE), folder, OPTIMUM) == answer


@pytest.mark.clients
def test_optimum_says_what_our_runtime_says(folder: Path, answer: str) -> None:
    """optimum's ORTModelForCausalLM gives the same text, in an environment without this project."""
    assert run(block("optimum", SERVE), folder, OPTIMUM, packages="") == answer


@pytest.mark.parametrize(
    ("method", "linear"),
    [
        ("cur", "gate_proj"),
        ("row-id", "gate_proj"),
        ("pifa", "gate_proj"),
        ("svd-llm", "gate_proj"),
        ("neurons", "down_proj"),
    ],
)
def test_the_reader_of_the_format_reads_every_form(tmp_path: Path, method: str, linear: str) -> None:
    """The artifact page's NumPy reader accepts every hash and rebuilds the first factored matrix, of any form."""
    _, out = convert_tiny(tmp_path, "llama", method=method)
    assert f"{linear}.weight: rank 6" in run(block("reader", "docs/artifact.md"), out.parent)


def test_the_reader_of_the_format_reads_a_smaller_attention(tmp_path: Path) -> None:
    """Its rows and columns, where it is asked for them instead of the first factored matrix."""
    _, out = convert_tiny(tmp_path, "llama", method="modegpt")
    program = block("reader", "docs/artifact.md")
    for linear, rank in (("q_proj", 16), ("v_proj", 8), ("o_proj", 16)):
        asked = program.replace('matrix["form"] != "dense"', f'"{linear}" in matrix["name"]')
        assert asked != program
        assert f"{linear}.weight: rank {rank}" in run(asked, out.parent)


def test_the_reader_of_the_format_reads_a_common_basis(tmp_path: Path) -> None:
    """Of the matrix under whose name it is not stored, too."""
    make_checkpoint(tmp_path / "source", "llama")
    make_layers_alike(tmp_path / "source")
    tokens = token_file(tmp_path / "ids.safetensors")
    options = tiny_options(tokens, "auto", rank=None, keep=0.75, rank_multiple=2, share=True)
    convert(SourceOptions(str(tmp_path / "source")), tmp_path / "out", options)
    artifact, program = Artifact.open(tmp_path / "out"), block("reader", "docs/artifact.md")
    rows = [matrix for matrix in artifact.manifest["matrices"] if matrix["shared"]]
    assert len({row["name"] for row in rows}) >= 2
    for row in rows:
        shape = (row["shape"][0], row["shape"][1])
        names = form_of(row["form"]).tensor_names(row["name"], Shared.of(row))
        product = form_of(row["form"]).multiply(
            shape, {suffix: artifact.tensor(name) for suffix, name in names.items()}
        )
        asked = program.replace('matrix["form"] != "dense"', f'matrix["name"] == "{row["name"]}"')
        expected = f"{row['name']}: rank {row['rank']}, largest entry {np.abs(product).max():.4f}"
        assert expected in run(asked, tmp_path)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_parse(document: Path) -> None:
    """Every curconvert command in the documents names a command and options that exist."""
    for line in commands(document):
        words = shlex.split(line, comments=True)[1:]
        words = words[: next((i for i, word in enumerate(words) if word in (">", "|", "||", "&&")), len(words))]
        assert isinstance(main, click.Group)
        name = words.pop(0) if words[0] in main.commands else "convert"
        # Parses and converts every value; nothing runs.
        context = main.commands[name].make_context(name, words)
        assert context.params, line


def test_the_families_page_lists_what_is_supported() -> None:
    """The first table of families.md and the code name the same families."""
    text = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    rows = text.partition("|---")[2]
    assert set(re.findall(r"^\| [^|`]+ \| `(\w+)` \|", rows, re.MULTILINE)) == set(SUPPORTED_FAMILIES)


def test_the_verification_page_names_every_check(folder: Path, tmp_path: Path) -> None:
    """Each check of a full report, thresholds, torch, source and quantized weights included, stands on the page."""
    text = (ROOT / "docs" / "verification.md").read_text(encoding="utf-8")
    known = re.findall(r"^\| (`[^|]*) \|", text.partition("## The numbers")[0], re.MULTILINE)
    patterns = [pattern for row in known for pattern in re.findall(r"`([^`]+)`", row)]
    limits = VerifyOptions(max_kl=100.0, min_top1=0.0, max_ppl_ratio=1e9)
    source = str(folder / "path/to/model")
    names = {check.name for check in verify_artifact(folder / "out", limits, against=source, torch=True).checks}
    names |= {check.name for check in verify_artifact(folder / "out", limits, torch=False).checks}
    make_checkpoint(tmp_path / "source", "llama")
    int8 = tiny_options(token_file(tmp_path / "ids.safetensors"), quantization=Quantization("int8", rounding="nearest"))
    convert(SourceOptions(str(tmp_path / "source")), tmp_path / "int8", int8)
    names |= {check.name for check in check_slices(tmp_path / "int8", tmp_path / "source")}
    assert [name for name in sorted(names) if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not fnmatch.filter(names, pattern)] == []


def test_every_command_of_the_readme_does_what_it_says(tmp_path: Path) -> None:
    """In order, with a random model: it loses more than a real one, so the limits of the gate are wider here."""
    folder = tmp_path / "path/to/model"
    make_checkpoint(
        folder, "llama", num_hidden_layers=3, hidden_size=256, intermediate_size=512, head_dim=64,
        num_key_value_heads=2, max_position_embeddings=256, eos_token_id=END,
    )  # fmt: skip
    make_tokenizer(folder)
    found = steps(ROOT / "README.md")
    assert [len(step.script.splitlines()) for step in found] == [3, 1, 1]
    for step in found:
        run_step(replace(step, script=step.script.replace("0.2 --min-top1 0.8", "20 --min-top1 0")), tmp_path)
    assert "<testsuite" in (tmp_path / "verify.xml").read_text()


def test_the_readme_serves(folder: Path, answer: str) -> None:
    """Its few lines print what the guide's do."""
    assert run(block("serve"), folder) == answer


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """Every relative link of a document is a file of the project."""
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize(
    ("method", "asked"),
    [
        ("cur", Quantization("int8", 32, asymmetric=True)),
        ("pifa", Quantization("int4", 32)),
        ("pifa", Quantization("int3", 32, asymmetric=True)),
        ("pifa", Quantization("int7", 64, scale_dtype="float32")),
        ("pifa", Quantization.of(None, 32, bits_per_weight=7.0)),
    ],
    ids=["int8", "int4", "int3", "int7", "mixed"],
)
def test_the_reader_of_the_format_reads_quantized_factors(tmp_path: Path, method: str, asked: Quantization) -> None:
    """Both types, with zero points and without, and both in one artifact."""
    make_checkpoint(tmp_path / "source", "llama")
    options = tiny_options(token_file(tmp_path / "ids.safetensors"), method, quantization=asked)
    convert(SourceOptions(str(tmp_path / "source")), tmp_path / "out", options)
    artifact = Artifact.open(tmp_path / "out")
    row = next(matrix for matrix in artifact.manifest["matrices"] if matrix["form"] != "dense")
    linear = build_torch_model(artifact).get_submodule(row["name"].removesuffix(".weight"))
    product = linear(torch.eye(row["shape"][1])).T
    expected = f"{row['name']}: rank {row['rank']}, largest entry {float(product.abs().max()):.4f}"
    assert expected in run(block("reader", "docs/artifact.md"), tmp_path)
