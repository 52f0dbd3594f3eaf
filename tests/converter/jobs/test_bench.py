"""`bench`: what it counts, what it compares, what it refuses; each model in a process of its own."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from curconvert.jobs.bench.processes import MeasuringProcess
from curconvert.jobs.bench.result import Spread
from curconvert.jobs.bench.run import bench
from curconvert.options.bench import BenchOptions
from curconvert_runtime.errors import BackendError, InputError
from support.command_line import call, refused
from support.conversions import convert_tiny
from support.tiny_artifact import CONTEXT, LAYERS, VOCAB, WIDTH, write_toy

QUICK = ("--prompt-tokens", "4,8", "--generated-tokens", "3", "--rounds", "1", "--threads", "1")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama (`source`), the same compressed (`out`), and a toy artifact (`toy`)."""
    folder = tmp_path_factory.mktemp("home")
    convert_tiny(folder, "llama")
    write_toy(folder / "toy")
    return folder


def test_an_artifact_alone_has_speed_memory_and_start(home: Path) -> None:
    """Every batch meets every length; the document keeps its schema, and nothing is compared."""
    result = call("bench", home / "toy", *QUICK, "--batch", "1,2", "--json", "--quiet")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    places = [(row["workload"]["batch"], row["workload"]["prompt_tokens"]) for row in found["rows"]]
    assert places == [(1, 4), (1, 8), (2, 4), (2, 8)]
    assert found["against"] is None
    assert all(row["against"] is row["ratios"] is None for row in found["rows"])
    side = found["artifact"]
    assert 0 < side["load_seconds"]["median"] < side["start_seconds"]["median"]
    assert 0 < side["resident_bytes"] <= side["peak_bytes"]


def test_bytes_per_token_are_weights_and_cache(home: Path) -> None:
    """The toy reads its two tables each step, and each row the keys and values that it has on average."""
    options = BenchOptions(prompt_tokens=(6,), generated_tokens=3, batches=(2,), rounds=1, threads=1)
    (row,) = bench(home / "toy", options).rows
    tables = 4 * (VOCAB + CONTEXT) * WIDTH
    steps = [LAYERS * 2 * WIDTH * 4 * length for length in (7, 8, 9)]
    assert row.artifact.bytes_per_token == tables / 2 + sum(steps) / 3


def test_a_checkpoint_is_exported_and_compared(home: Path) -> None:
    """Both sides are timed; the predicted ratio is that of the bytes each reads for a token."""
    result = call("bench", home / "out", "--against", home / "source", *QUICK, "--json", "--quiet")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["against"]["name"] == str(home / "source")
    assert found["artifact"]["weight_bytes"] < found["against"]["weight_bytes"]
    for row in found["rows"]:
        predicted = row["against"]["bytes_per_token"] / row["artifact"]["bytes_per_token"]
        assert row["ratios"]["predicted_decode"] == pytest.approx(predicted)
        medians = row["artifact"]["decode"]["median"] / row["against"]["decode"]["median"]
        assert row["ratios"]["decode"]["min"] <= medians <= row["ratios"]["decode"]["max"]


def test_the_table_shows_both_and_their_ratio(home: Path) -> None:
    """People see names, speeds, the ratio and what the bytes say."""
    result = call("bench", home / "out", "--against", home / "out", *QUICK, "--graph", "portable")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("bytes predict 1.00") == 2
    assert "portable graph" in result.stdout
    assert "GB/s" in result.stdout


def test_the_spread_is_of_the_rounds() -> None:
    """Median, least and most."""
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--prompt-tokens", "30", "--generated-tokens", "3"), 2, "context"),
        (("--prompt-tokens", "4,x"), 2, "whole numbers"),
        (("--prompt-tokens", ""), 2, "--prompt-tokens is empty"),
        (("--prompt-tokens", "4,4"), 2, "twice"),
        (("--batch", "0"), 2, "--batch 0"),
        (("--generated-tokens", "0"), 2, "--generated-tokens 0"),
        (("--rounds", "0"), 2, "--rounds 0"),
        (("--threads", "0"), 2, "--threads 0"),
        (("--graph", "other"), 2, "--graph 'other'"),
        (("--provider", "tpu"), 2, "--provider 'tpu'"),
        (("--provider", "cuda", "--prompt-tokens", "4", "--generated-tokens", "3"), 6, "CUDAExecutionProvider"),
        (("--against", "nowhere", "--prompt-tokens", "4", "--generated-tokens", "3"), 2, "nowhere"),
    ],
)
def test_a_wrong_request_is_one_line(home: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    """Before anything is measured; what the worker refuses comes out as the same kind of error."""
    result = call("bench", home / "toy", *arguments, "--quiet")
    assert result.exit_code == code, result.output
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_folder_that_is_no_artifact_is_refused(tmp_path: Path) -> None:
    """As by every command."""
    refused(call("bench", tmp_path), 2, "curconvert.json")


def test_a_worker_that_dies_is_a_backend_error() -> None:
    """Its end is noticed and said, with its code."""
    with MeasuringProcess() as process, pytest.raises(BackendError, match="ended with code -9"):
        os.kill(process.pid, signal.SIGKILL)
        process.ask("read", threads=1)


def test_a_worker_hands_errors_over() -> None:
    """What it refuses is raised here as what it was there, and it goes on."""
    with MeasuringProcess() as process:
        for _ in range(2):
            with pytest.raises(InputError, match="no such folder"):
                process.ask("load", path="/nowhere/out", prompt_tokens=1)


@pytest.mark.parametrize("values", [{"rounds": True}, {"batches": (1.5,)}, {"threads": "2"}])
def test_options_of_another_type_are_refused(values: dict[str, Any]) -> None:
    """The Python API checks as the command line does."""
    with pytest.raises(InputError, match="expected an integer"):
        BenchOptions(**values)
