"""What is timed, how many bytes a step reads, and how fast this machine reads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from curconvert.base.machine import MemoryReader, peak_memory, resident_memory
from curconvert.graph import build_graphs, save_graphs
from curconvert.jobs.bench import speed
from curconvert.jobs.bench.speed import Timing, measure, weight_bytes
from curconvert.options.bench import Workload
from curconvert_runtime import InputError, load
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.tensor_file import read_headers
from support.families import make_checkpoint
from support.tiny_artifact import CONTEXT, write_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy artifact."""
    return write_toy(tmp_path_factory.mktemp("toy") / "out")


def test_a_request_is_timed_in_two_parts(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first token, and the steps after it, one for each token that is asked for: by a clock of our own."""
    session, clock, seconds = load(toy, threads=1), 0, iter([10, 1, 1, 1, 1])
    run = session.run

    def timed(*arguments: Any, **options: Any) -> Any:
        nonlocal clock
        clock += next(seconds)
        return run(*arguments, **options)

    monkeypatch.setattr(session, "run", timed)
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: clock))
    assert measure(session, Workload(2, 5, 4)) == Timing(first_token=10, decode=4)


def test_the_whole_context_can_be_measured(toy: Path) -> None:
    """Prompt and generated tokens may fill it, and no more."""
    artifact = Artifact.open(toy)
    workload = Workload(1, CONTEXT - 3, 3)
    workload.check_context(artifact)
    measure(load(toy), workload)
    with pytest.raises(InputError, match=f"context of .* is {CONTEXT}"):
        Workload(1, CONTEXT - 2, 3).check_context(artifact)


@pytest.mark.parametrize("graph", ["portable", "fused"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_that_a_step_reads(graph: str, dtype: torch.dtype, tied: bool, tmp_path: Path) -> None:
    """Every parameter once, as float32, without an embedding that only gives away rows."""
    model = make_checkpoint(tmp_path, "llama", dtype=dtype, tie_word_embeddings=tied)
    save_graphs(build_graphs(model.config, model.tensors, model.forms), tmp_path)
    files = {"portable": {"file": "model.onnx"}, "fused": {"file": "model.fused.onnx"}}
    artifact = Artifact(tmp_path, {"graphs": files}, read_headers(tmp_path / "model.safetensors"))
    skipped = 0 if tied else model.oracle.get_input_embeddings().weight.numel()
    parameters = sum(parameter.numel() for parameter in model.oracle.parameters())
    assert weight_bytes(artifact, graph) == 4 * (parameters - skipped)


def test_memory_of_this_process_is_known() -> None:
    """Linux tells both; what was just held is among it, and the peak is never below what is there."""
    held = np.ones(2**24, np.float64)
    resident, peak = resident_memory(), peak_memory()
    assert resident is not None
    assert peak is not None
    assert held.nbytes < resident <= peak


def test_the_reader_reads_every_byte() -> None:
    """The parts are the whole buffer, one for each thread, and the rate is a plausible one."""
    reader = MemoryReader(2)
    rate = reader.bytes_per_second()
    assert 1e8 < rate < 1e13
    assert reader.buffer_bytes == 2**29
