"""The programs of the page about Node print what our runtime prints."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from curconvert.jobs.convert import convert
from curconvert.options.quantization import Quantization
from curconvert.options.source import SourceOptions
from curconvert_runtime import Completion, GenerationOptions, load
from support.families import make_checkpoint
from support.tiny_runs import add_tokenizer, tiny_options, token_file

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "guides" / "serve-from-node.md"
MODULES = ROOT / ".node" / "node_modules"
PROMPT = "The capital"
TOKENS = 24


def program(name: str) -> str:
    """Return the JavaScript block behind the marker `test: name`."""
    pattern = rf"<!-- test: {re.escape(name)} -->\n```javascript\n(.*?)```"
    (found,) = re.findall(pattern, PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return str(found)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random Llama with factors in float32, and one with int8 weights."""
    home = tmp_path_factory.mktemp("node")
    make_checkpoint(home / "source", "llama", num_hidden_layers=4, max_position_embeddings=256)
    add_tokenizer(home / "source")
    tokens = token_file(home / "ids.safetensors")
    options = {
        "float": tiny_options(tokens, "cur"),
        "int8": tiny_options(tokens, "dense", rank=None, quantization=Quantization("int8", rounding="nearest")),
    }
    for name, chosen in options.items():
        convert(SourceOptions(str(home / "source")), home / name, chosen)
    return {name: home / name for name in options}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node 18 or newer")
@pytest.mark.parametrize("weights", ["float", "int8"])
@pytest.mark.parametrize(
    ("name", "package"), [("node", "onnxruntime-node"), ("transformers.js", "@huggingface/transformers")]
)
def test_node_says_what_our_runtime_says(
    artifacts: dict[str, Path], tmp_path: Path, name: str, package: str, weights: str
) -> None:
    """A program of the page continues a prompt greedily with the runtime's text."""
    if not (MODULES / package).is_dir():
        pytest.skip(f"needs the npm package {package} that `make node` installs")
    (tmp_path / "node_modules").symlink_to(MODULES)
    (tmp_path / "program.mjs").write_text(program(name), encoding="utf-8")
    command = ["node", "program.mjs", str(artifacts[weights]), PROMPT]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    expected = load(artifacts[weights]).generate(PROMPT, GenerationOptions(max_new_tokens=TOKENS))
    assert isinstance(expected, Completion)
    assert len(expected.ids) == TOKENS
    assert done.stdout == expected.text + "\n"
