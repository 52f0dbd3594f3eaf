"""Peak memory of a conversion: one block's, however many blocks the model has, and within a limit where one is set."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from support.families import make_checkpoint
from support.tiny_runs import token_file

_CONVERT = """
import json, sys
from pathlib import Path
from curconvert import CalibrationOptions, ConvertOptions, SourceOptions, convert
from curconvert.execution.executor import ExecutionOptions
model, tokens, out, sequences, limit = sys.argv[1:]
calibration = CalibrationOptions(tokens, sequences=int(sequences), tokens_per_sequence=32, probe_sequences=4)
options = ConvertOptions.for_method(rank=32, layers="all", calibration=calibration)
execution = ExecutionOptions(workers=1, memory_limit=int(limit) or None)
result = convert(SourceOptions(model), Path(out), options, execution=execution)
print(json.dumps([result.peak_memory_bytes, (Path(out) / "model.safetensors").stat().st_size]))
"""


def peak(tmp_path: Path, layers: int, sequences: int = 8, limit: int = 0) -> tuple[int, int]:
    """Convert a generated model in a process of its own; return its peak memory and the weights' size, in bytes."""
    model = tmp_path / f"model{layers}-{limit}"
    make_checkpoint(
        model, "llama", num_hidden_layers=layers, hidden_size=256, intermediate_size=1024,
        num_attention_heads=8, num_key_value_heads=4, head_dim=32,
    )  # fmt: skip
    tokens = token_file(tmp_path / "tokens.safetensors", 4 * (sequences + 4))
    out = tmp_path / f"out{layers}-{limit}"
    command = [sys.executable, "-c", _CONVERT, str(model), str(tokens), str(out), str(sequences), str(limit)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    memory, size = json.loads(done.stdout.splitlines()[-1])
    return int(memory), int(size)


def test_peak_memory_does_not_grow_with_the_number_of_layers(tmp_path: Path) -> None:
    """From 4 to 64 layers the weights grow by more than 150 MB and the peak by less than a fifth of that.

    What grows is modules without weights and graph nodes, about 0.3 MB a layer, and noise of the allocator.
    """
    few, some, many = (peak(tmp_path, layers) for layers in (4, 16, 64))
    grown = many[1] - few[1]
    assert grown > 150e6
    assert some[0] - few[0] < 0.2 * grown
    assert many[0] - few[0] < 0.2 * grown


def test_hidden_states_leave_memory_for_a_limit(tmp_path: Path) -> None:
    """131,072 tokens of 256 features take 134 MB; with a limit that leaves no room for them, the peak falls by most."""
    free, _ = peak(tmp_path, layers=1, sequences=4096)
    limited, _ = peak(tmp_path, layers=1, sequences=4096, limit=int(600e6))
    assert free - limited > 100e6
