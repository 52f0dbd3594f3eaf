"""The wheel and the source distribution: what they hold, and that they work where only the base dependencies are.

There verify and generate run without torch.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path
from typing import NamedTuple

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


class Built(NamedTuple):
    """The two files of a release."""

    wheel: Path
    sdist: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    return Built(next(folder.glob("*.whl")), next(folder.glob("*.tar.gz")))


@pytest.fixture(scope="module")
def base(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of a new environment that holds the built wheel, its base dependencies and the CPU onnxruntime."""
    folder = tmp_path_factory.mktemp("base")
    wheel = built.wheel
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


def test_the_package_index_accepts_both(built: Built) -> None:
    """twine finds no fault in the metadata, and the description renders."""
    run(sys.executable, "-m", "twine", "check", "--strict", *built)


def test_both_hold_the_license(built: Built) -> None:
    """The file is the repository's."""
    license_text = (ROOT / "LICENSE").read_bytes()
    with zipfile.ZipFile(built.wheel) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/licenses/LICENSE"))
        assert wheel.read(name) == license_text
    with tarfile.open(built.sdist) as sdist:
        member = sdist.extractfile(f"{built.sdist.name.removesuffix('.tar.gz')}/LICENSE")
        assert member is not None
        assert member.read() == license_text


def test_the_description_has_no_relative_link(built: Built) -> None:
    """The README's links lead somewhere from a package index as well."""
    with zipfile.ZipFile(built.wheel) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(wheel.read(name).decode())
    assert metadata["License-Expression"] == "Apache-2.0"
    description = str(metadata.get_payload())
    assert re.search(r"\]\(https://github\.com/curconvert/curconvert/blob/main/[^)]+\)", description)
    assert not re.findall(r"\]\((?!https?:|mailto:|#)[^)]*\)", description)


def test_every_package_is_typed(built: Built) -> None:
    """Type checkers read the annotations of the three packages."""
    with zipfile.ZipFile(built.wheel) as wheel:
        names = set(wheel.namelist())
    assert {f"{name}/py.typed" for name in ("curconvert", "curconvert_runtime", "curconvert_schemas")} <= names


def test_the_source_distribution_installs(built: Built, tmp_path: Path) -> None:
    """It holds what the tests and the site need, and pip builds a wheel from it."""
    with tarfile.open(built.sdist) as sdist:
        top = {name.split("/")[1] for name in sdist.getnames()}
    assert {"LICENSE", "Makefile", "benchmarks", "docs", "mkdocs.yml", "pyproject.toml", "tests", "tools"} <= top
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "install", "--no-deps", "--target", tmp_path, built.sdist)
    assert (tmp_path / "curconvert_schemas" / "manifest-1.0.schema.json").is_file()


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
    assert "pip install 'curconvert[convert]'" in message  # an onnxruntime is there
