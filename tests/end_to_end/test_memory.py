"""Peak memory is one block's, however many blocks a model has, and within a limit where one is set."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from curconvert import SourceOptions, convert
from support.families import make_checkpoint
from support.tiny_runs import tiny_options, token_file

_CONVERT = """
import json, sys
from pathlib import Path
from curconvert import CalibrationOptions, ConvertOptions, SourceOptions, convert
from curconvert.execution.executor import ExecutionOptions
model, tokens, out, sequences, limit = sys.argv[1:]
calibration = CalibrationOptions(tokens, sequences=int(sequences), tokens_per_sequence=32, probe_sequences=4)
options = ConvertOptions.for_method(rank=32, layers="all", targets=("q_proj",), calibration=calibration)
execution = ExecutionOptions(workers=1, memory_limit=int(limit) or None)
result = convert(SourceOptions(model), Path(out), options, execution=execution)
print(json.dumps([result.peak_memory_bytes, (Path(out) / "model.safetensors").stat().st_size]))
"""

_HEAL = """
import json, sys
from pathlib import Path
from curconvert import CalibrationOptions, SourceOptions
from curconvert.options.heal import HealOptions
from curconvert.jobs.heal import heal
from curconvert.base.machine import peak_memory
artifact, model, tokens, start, out = sys.argv[1:]
data = CalibrationOptions(tokens, sequences=10, tokens_per_sequence=24, probe_sequences=4)
options = HealOptions(mode="blocks", start=start, steps=2, batch=4, data=data)
heal(artifact, SourceOptions(model), Path(out), options)
print(json.dumps([peak_memory(), (Path(out) / "model.safetensors").stat().st_size]))
"""


def make_model(tmp_path: Path, layers: int) -> Path:
    """Generate a model with 4 MB of weights in each layer."""
    model = tmp_path / f"model{layers}"
    make_checkpoint(
        model, "llama", num_hidden_layers=layers, hidden_size=256, intermediate_size=1024,
        num_attention_heads=8, num_key_value_heads=4, head_dim=32,
    )  # fmt: skip
    return model


def run(script: str, *arguments: str | Path) -> tuple[int, int]:
    """Run a script in a process of its own; return its peak memory and the weights' size, in bytes."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    memory, size = json.loads(done.stdout.splitlines()[-1])
    return int(memory), int(size)


def peak(tmp_path: Path, layers: int, sequences: int = 8, limit: int = 0) -> tuple[int, int]:
    """Convert a generated model."""
    folder = tmp_path / f"{layers}-{limit}"
    folder.mkdir()
    tokens = token_file(folder / "tokens.safetensors", 4 * (sequences + 4))
    return run(_CONVERT, make_model(folder, layers), tokens, folder / "out", str(sequences), str(limit))


def test_peak_memory_does_not_grow_with_the_number_of_layers(tmp_path: Path) -> None:
    """From 4 to 64 layers the weights grow by more than 150 MB and the peak by less than a fifth of that.

    What grows is modules without weights and graph nodes, about 0.3 MB a layer, and noise of the allocator.
    """
    few, many = (peak(tmp_path, layers) for layers in (4, 64))
    grown = many[1] - few[1]
    assert grown > 150e6
    assert many[0] - few[0] < 0.2 * grown


def test_hidden_states_leave_memory_for_a_limit(tmp_path: Path) -> None:
    """65,536 tokens of 256 features take 67 MB; with a limit that leaves no room for them, the peak falls by most."""
    free, _ = peak(tmp_path, layers=1, sequences=2048)
    limited, _ = peak(tmp_path, layers=1, sequences=2048, limit=int(600e6))
    assert free - limited > 50e6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of 16 and of 64 layers, artifacts of them, and token ids."""
    found = tmp_path_factory.mktemp("memory")
    tokens = token_file(found / "tokens.safetensors")
    for layers in (16, 64):
        source = SourceOptions(str(make_model(found, layers)))
        convert(source, found / f"out{layers}", tiny_options(tokens, targets=("q_proj",)))
    return found


@pytest.mark.parametrize("start", [pytest.param("none", marks=pytest.mark.slow), "als"])
def test_peak_memory_of_healing_by_blocks_does_not_grow_with_the_number_of_layers(
    folder: Path, tmp_path: Path, start: str
) -> None:
    """From 16 to 64 layers the weights grow by more than 150 MB and the peak by less than a fifth of that.

    The whole of it: text, training, writing, and the compressed model's answers on the probes.
    """
    few, many = (
        run(
            _HEAL, folder / f"out{layers}", folder / f"model{layers}", folder / "tokens.safetensors", start,
            tmp_path / f"healed{layers}",
        )
        for layers in (16, 64)
    )  # fmt: skip
    grown = many[1] - few[1]
    assert grown > 150e6
    assert many[0] - few[0] < 0.2 * grown
