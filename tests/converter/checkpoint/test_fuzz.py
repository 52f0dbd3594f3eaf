"""Random damage to headers, indexes and configs: refused by a `CurConvertError` or opened, fast, in little memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curconvert.base.errors import CurConvertError
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.files import CONFIG_LIMIT
from curconvert.checkpoint.shards import INDEX_LIMIT
from curconvert.jobs.prepare import first_plan
from curconvert.methods.core.options import ConvertOptions
from curconvert.options.calibration import CalibrationOptions
from curconvert_runtime.format.tensor_file import MAX_HEADER_BYTES
from support.checkpoints import edit_config, edit_tensors, shard, write_index, write_raw
from support.families import TinyModel
from support.fuzzing import memory_below, mutated_json, mutated_safetensors, within

SECONDS = 5
# transformers' modules and classes of a tiny model, and the allocator's pools; the files are some 100 kB.
CONSTANT_BYTES = 64e6
EXAMPLES = [60, pytest.param(900, marks=pytest.mark.slow)]
CALIBRATION = CalibrationOptions(tokens_per_sequence=24)
OPTIONS = (
    ConvertOptions.for_method("cur", rank=8, layers="all", calibration=CALIBRATION),
    ConvertOptions.for_method("modegpt", layers="all", calibration=CALIBRATION),
    ConvertOptions.for_method("auto", rank_multiple=2, calibration=CALIBRATION),
)


def open_and_plan(folder: Path, size: int) -> str:
    """Open a checkpoint, read every tensor and plan it: it works, or is refused in a few words, which are returned."""
    with within(SECONDS), memory_below(2 * size + CONSTANT_BYTES):
        try:
            checkpoint = open_checkpoint(folder)
            for name, info in checkpoint.tensors.items():
                assert checkpoint.read(name).shape == info.shape
            for options in OPTIONS:
                first_plan(checkpoint, options)
        except CurConvertError as error:
            assert 0 < len(str(error)) < 1000
            return str(error)
    return ""


def fuzz(folder: Path, file: str, damaged: st.SearchStrategy[bytes], examples: int) -> None:
    """Put many damaged copies of a file in its place."""
    size = sum(path.stat().st_size for path in folder.iterdir())

    # The modest number is the same cases each time; the large one looks for new ones.
    @settings(
        max_examples=examples, derandomize=examples < 100, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(damaged)
    def run(content: bytes) -> None:
        (folder / file).write_bytes(content)
        open_and_plan(folder, size + len(content))

    assert open_and_plan(folder, size) == ""  # and imports what it needs
    run()


@pytest.mark.parametrize("examples", EXAMPLES)
def test_damaged_headers(llama: Path, examples: int) -> None:
    """Of a single file."""
    content = (llama / "model.safetensors").read_bytes()
    fuzz(llama, "model.safetensors", mutated_safetensors(content), examples)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_damaged_indexes(llama: Path, examples: int) -> None:
    """Of a sharded model."""
    shard(llama)
    name = "model.safetensors.index.json"
    fuzz(llama, name, mutated_json(json.loads((llama / name).read_text())), examples)


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3"])
def test_damaged_configs(family: str, examples: int, tiny: Callable[[str], TinyModel], tmp_path: Path) -> None:
    """Of a plain family, one with nested rope parameters, and one with fused projections."""
    folder = Path(shutil.copytree(tiny(family).folder, tmp_path / "model"))
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    fuzz(folder, "config.json", mutated_json(config), examples)


def _largest_config(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    room = CONFIG_LIMIT - len(json.dumps({**config, "extra": []}))
    path.write_text(json.dumps({**config, "extra": [[] for _ in range(room // 4)]}))


def _largest_header(folder: Path) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    count = MAX_HEADER_BYTES // (len(json.dumps(entry)) + 12)
    write_raw(folder / "model.safetensors", {f"{number:06}": entry for number in range(count)})


def _largest_index(folder: Path) -> None:
    shard(folder)
    write_index(folder, {f"{number:06}": [] for number in range((INDEX_LIMIT - 100) // 14)})


def _most_layers(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=1000)
    empty = {f"model.layers.{number}.a": torch.zeros(0) for number in range(1000)}
    edit_tensors(folder, lambda tensors: tensors.update(empty))


@pytest.mark.parametrize("fill", [_largest_config, _largest_header, _largest_index, _most_layers])
def test_the_largest_files_that_are_read(fill: Callable[[Path], None], llama: Path) -> None:
    """Text that takes the most memory and time once it is parsed, just within each limit."""
    open_and_plan(llama, 0)  # imports what it needs
    fill(llama)
    message = open_and_plan(llama, sum(path.stat().st_size for path in llama.iterdir()))
    assert "at most" not in message
