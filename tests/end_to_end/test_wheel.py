"""The wheel in an environment with only the base dependencies: verify and generate work there, without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from curconvert import SourceOptions, convert
from curconvert_runtime import VerifyOptions
from support.families import make_checkpoint
from support.tiny_runs import add_tokenizer, tiny_options, token_file

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {
    "torch", "transformers", "safetensors", "scipy", "onnx", "onnx-ir", "mobius-onnx", "gguf", "huggingface-hub",
    "matplotlib", "threadpoolctl", "ray",
}  # fmt: skip


def run(*command: str | Path, expected: int = 0) -> str:
    """Run a program away from the source tree."""
    done = subprocess.run(command, cwd="/", capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == expected, done.stderr
    return done.stdout if expected == 0 else done.stderr


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of a new environment that holds the built wheel, its base dependencies and the CPU onnxruntime."""
    folder = tmp_path_factory.mktemp("base")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--wheel-dir", folder, ROOT)
    wheel = next(folder.glob("curconvert-*.whl"))
    run(sys.executable, "-m", "venv", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    run(python, "-m", "pip", "--quiet", "install", "-c", ROOT / "constraints.txt", f"{wheel}[cpu]")
    return python.parent


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny artifact, made by the development environment."""
    folder = tmp_path_factory.mktemp("artifact")
    model = make_checkpoint(folder / "model", "llama", num_hidden_layers=4)
    add_tokenizer(model.folder)
    tokens = token_file(folder / "tokens.safetensors")
    convert(SourceOptions(str(model.folder)), folder / "out", tiny_options(tokens), verification=VerifyOptions())
    return folder / "out"


def test_the_environment_is_bare(base: Path) -> None:
    """None of the converter's packages came along."""
    listed = json.loads(run(base / "python", "-m", "pip", "list", "--format", "json"))
    assert not HEAVY & {package["name"].lower() for package in listed}


def test_verify_runs(base: Path, artifact: Path) -> None:
    """Every torch-free check runs and passes."""
    report = json.loads(run(base / "curconvert", "verify", artifact, "--json"))
    assert report["passed"]
    names = {check["name"] for check in report["checks"]}
    assert {"integrity.files", "parity.portable.logits", "parity.fused.logits", "fidelity.finite"} <= names


def test_generate_runs(base: Path, artifact: Path) -> None:
    """A prompt is continued."""
    answer = json.loads(
        run(base / "curconvert", "generate", artifact, "--prompt", "abc", "--max-new-tokens", "5", "--json")
    )
    assert 1 <= len(answer[0]["ids"]) <= 5


def test_bench_runs(base: Path, artifact: Path) -> None:
    """An artifact is measured, in processes that find the same environment."""
    command = (base / "curconvert", "bench", artifact, "--prompt-tokens", "8", "--generated-tokens", "4")
    found = json.loads(run(*command, "--rounds", "1", "--json"))
    (row,) = found["rows"]
    assert row["workload"] == {"batch": 1, "prompt_tokens": 8, "generated_tokens": 4}
    assert (found["artifact"]["name"], found["against"], row["ratios"]) == (str(artifact), None, None)


def test_convert_says_what_to_install(base: Path, artifact: Path) -> None:
    """The converter's commands name the missing extra in one line and exit 6."""
    message = run(base / "curconvert", artifact, "-o", "/nowhere/out", expected=6)
    assert message.count("\n") == 1
    assert "pip install 'curconvert[convert,cpu]'" in message
