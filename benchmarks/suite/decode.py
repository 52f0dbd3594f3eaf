"""Compares decoding speed with the bytes that decoding reads, for compressed and quantized models.

The models of a group alternate step by step, in one process with one thread. CPU seconds count, because on a shared
machine wall-clock time includes the load of other programs. A memory read between the steps shows the reachable speed.
The placement of a process's memory changes its speed by a few percent, so several processes are measured.
"""

from __future__ import annotations

import time
from argparse import Namespace
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import MODEL, Result, model_arguments, model_name
from benchmarks.suite.artifacts import COMPRESSED, FORMS, SHAPE, make, make_layers
from benchmarks.suite.random_artifacts import FORMS as RANDOM_FORMS
from benchmarks.suite.random_artifacts import QUANTIZED_FORMS
from curconvert.base.machine import MemoryReader
from curconvert.jobs.bench.speed import step_bytes
from curconvert.options.bench import Workload
from curconvert_runtime import Artifact, load
from curconvert_runtime.serve.decoding import Decoder

PROMPT = 128


@dataclass(frozen=True)
class Round:
    """Measurements of a group in one process.

    Attributes:
        read: Bytes per second of the memory reads, one per step.
        seconds: CPU seconds of each step, by model.
    """

    read: list[float]
    seconds: dict[str, list[float]]


def measure(folders: dict[str, Path], batch: int, steps: int) -> Round:
    """Run the models of a group alternately in this process and return the measurements."""
    decoders = {}
    for name, folder in folders.items():
        decoders[name] = Decoder(load(folder, threads=1), [np.full(PROMPT, 5)] * batch, steps + 1)
        decoders[name].prefill()
    reader, tokens = MemoryReader(1), np.full(batch, 5)
    read: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in folders}
    for _ in range(steps):
        begin = time.process_time()
        reader.read_once()
        read.append(reader.buffer_bytes / (time.process_time() - begin))
        for name, decoder in decoders.items():
            begin = time.process_time()
            decoder.step(tokens)
            seconds[name].append(time.process_time() - begin)
    return Round(read, seconds)


def measured(folders: dict[str, Path], batch: int, steps: int, rounds: int) -> list[Round]:
    """Measure in new processes. Each loads another model first, because the order may decide which memory it gets."""
    names, found = list(folders), []
    for turn in range(rounds):
        first = turn % len(names)
        turned = {name: folders[name] for name in names[first:] + names[:first]}
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            found.append(process.submit(measure, turned, batch, steps).result())
    return found


def rows_of(folders: dict[str, Path], batch: int, steps: int, rounds: list[Round]) -> dict[str, dict[str, Any]]:
    """Return the figures of each model of a group; the first model is the reference for the others."""
    workload = Workload(batch, PROMPT, steps)
    sizes = {name: step_bytes(Artifact.open(folder), "fused", workload) for name, folder in folders.items()}
    reached = float(np.median([found.read for found in rounds]))
    seconds = {name: np.array([found.seconds[name] for found in rounds]) for name in folders}
    first = next(iter(folders))
    rows: dict[str, dict[str, Any]] = {}
    for name, size in sizes.items():
        own = float(np.median(seconds[name]))
        rows[name] = {"bytes": size, "seconds": own, "tokens": batch / own, "bandwidth": size / own / reached}
        if name != first:
            low, middle, high = (float(x) for x in np.quantile(seconds[first] / seconds[name], [0.25, 0.5, 0.75]))
            say = sizes[first] / size
            rows[name] |= {"speedup": {"median": middle, "low": low, "high": high}}
            rows[name] |= {"bytes_say": say, "by_bytes": middle / say}
    return rows


def groups_of(given: Namespace) -> dict[str, dict[str, Path]]:
    """Return the artifacts of each group; make those that do not exist."""
    groups: dict[str, dict[str, Path]] = {}
    if "real" in given.groups:
        name = "SmolLM2-135M" if given.model == MODEL else given.model.name
        groups[name] = {form: make(form, given.model, given.scratch) for form in FORMS}
    if "random" in given.groups:
        for forms in (RANDOM_FORMS, *QUANTIZED_FORMS.values()):
            name, made = make_layers(given.layers, forms, given.scratch)
            groups[name if forms == RANDOM_FORMS else f"{name}, {forms[0]}"] = made
    return groups


def main() -> None:
    """Measure every group."""
    parser = model_arguments("decode", __doc__)
    parser.add_argument("--scratch", type=Path, required=True, help="folder of the artifacts; missing ones are made")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="processes for each group")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument(
        "--layers", type=int, default=4, help=f"of Llama 3.2 {SHAPE}; all 16 take 13 GB of disk and memory"
    )
    parser.add_argument("--groups", nargs="+", default=["real", "random"], choices=["real", "random"])
    given = parser.parse_args()
    given.scratch.mkdir(parents=True, exist_ok=True)
    setting = {
        "model": f"SmolLM2-135M: {model_name(given.model)}; Llama's shape: random weights, a vocabulary cut as its "
        "layers are",
        "compressed": COMPRESSED, "int8": "in blocks of 32",
        "int4": "in blocks of 64, int4-128 of 128", "graph": "fused", "prompt": PROMPT, "steps": given.steps,
        "processes": given.rounds,
    }  # fmt: skip
    result = Result(given.out, setting, threads=1)
    for (group, folders), batch in product(groups_of(given).items(), given.batch):
        rounds = measured(folders, batch, given.steps, given.rounds)
        for form, row in rows_of(folders, batch, given.steps, rounds).items():
            result.add("decode", row, model=group, form=form, batch=batch)


if __name__ == "__main__":
    main()
