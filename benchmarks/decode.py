"""Decoding beside the bytes it reads: is a compressed model as much faster as it is smaller, at every precision?

The models of a group take turns step by step, in one process with one thread, and CPU seconds are counted: on a shared
machine that shows what the program costs, where the clock on the wall shows the neighbours. A read of memory stands
between the steps, as the measure of what can be reached. Where the system puts a process's memory changes its speed by
some percent, so there are several processes.
"""

from __future__ import annotations

import argparse
import gc
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from common import BROUGHT, MODEL, MODEL_NAME, bring_memory, machine, publish, table
from scale import SHAPES
from serving import FORMS, SHAPE, make
from shapes import FORMS as RANDOM_FORMS
from shapes import QUANTISED_FORMS, hollow, make_random

from curconvert.base.machine import MemoryReader, anonymous_memory
from curconvert.jobs.bench.speed import step_bytes
from curconvert.options.bench import Workload
from curconvert_runtime import Artifact, load
from curconvert_runtime.serve.decoding import Decoder
from curconvert_runtime.serve.huge_pages import give_back

PROMPT = 128


@dataclass(frozen=True)
class Round:
    """What one process measured of a group.

    Attributes:
        read: Bytes a second that memory was read at, once for each step.
        seconds: CPU seconds of each step, by model.
        held: Bytes of memory that loading a model took, without its file's pages.
    """

    read: list[float]
    seconds: dict[str, list[float]]
    held: dict[str, int]


def measure(folders: dict[str, Path], batch: int, steps: int) -> Round:
    """Let the models of a group take turns, in this process."""
    sessions, held = {}, {}
    for name, folder in folders.items():
        Artifact.open(folder)  # digests are remembered: making them takes longer than memory stays at hand
        bring_memory(folder)
        before = _copied()
        sessions[name] = load(folder, threads=1)
        held[name] = _copied() - before
    decoders = {}
    for name, session in sessions.items():
        decoders[name] = Decoder(session, [np.arange(1000, 1000 + PROMPT)] * batch, steps + 1)
        decoders[name].prefill()
    reader, tokens = MemoryReader(1), np.full(batch, 5)
    read: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(steps):
        begin = time.process_time()
        reader.read_once()
        read.append(reader.buffer_bytes / (time.process_time() - begin))
        for name, decoder in decoders.items():
            begin = time.process_time()
            decoder.step(tokens)
            seconds[name].append(time.process_time() - begin)
    return Round(read, seconds, held)


def measured(folders: dict[str, Path], batch: int, steps: int, rounds: int) -> list[Round]:
    """Measure in new processes, each of which loads another model first: that one may get the worse memory."""
    names, found = list(folders), []
    for turn in range(rounds):
        first = turn % len(names)
        turned = {name: folders[name] for name in names[first:] + names[:first]}
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            found.append(process.submit(measure, turned, batch, steps).result())
    return found


def rows_of(group: str, folders: dict[str, Path], batch: int, steps: int, rounds: list[Round]) -> list[list[str]]:
    """Return a row for each model of a group; the first is what the others are compared with."""
    workload = Workload(batch, PROMPT, steps)
    sizes = {name: step_bytes(Artifact.open(folder), "fused", workload) for name, folder in folders.items()}
    reached = float(np.median([found.read for found in rounds]))
    seconds = {name: np.array([found.seconds[name] for found in rounds]) for name in folders}
    held = {name: float(np.median([found.held[name] for found in rounds])) for name in folders}
    first = next(iter(folders))
    rows = []
    for name, size in sizes.items():
        low, middle, high = np.quantile(seconds[first] / seconds[name], [0.25, 0.5, 0.75])
        own = float(np.median(seconds[name]))
        speedup = [f"{middle:.2f} ({low:.2f} to {high:.2f})"]
        for ratio in (sizes[first] / size, held[first] / held[name]):
            speedup += [f"{ratio:.2f}", f"{middle / ratio:.2f}"]
        cells = [
            f"{size / 1e6:,.0f}", f"{held[name] / 1e6:,.0f}", f"{own * 1e3:.1f}", f"{batch / own:.1f}",
            f"{100 * size / own / reached:.0f} %",
        ]  # fmt: skip
        rows.append([group, name, str(batch), *cells, *([""] * len(speedup) if name == first else speedup)])
    return rows


def _copied() -> int:
    """Return the bytes of this process's memory that no file backs, without what it has no use for."""
    gc.collect()
    give_back()
    return anonymous_memory() or 0


def main() -> None:
    """Measure every group and publish the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--scratch", type=Path, required=True, help="Artifacts, made where they are not there yet.")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="processes for each group")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument(
        "--layers", type=int, default=4, help=f"of Llama 3.2 {SHAPE}; all 16 take 13 GB of disk and memory"
    )
    parser.add_argument("--groups", nargs="+", default=["real", "random"], choices=["real", "random"])
    parser.add_argument("--no-publish", action="store_true", help="Print the table, leave docs/benchmarks.md alone.")
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    groups: dict[str, dict[str, Path]] = {}
    if "real" in arguments.groups:
        groups["SmolLM2-135M"] = {form: make(form, arguments.model, arguments.scratch) for form in FORMS}
    if "random" in arguments.groups:
        home = arguments.scratch / f"{SHAPE}-{arguments.layers}"
        checkpoint = hollow(home / "source", SHAPE, arguments.layers)
        name = f"{arguments.layers} of the {SHAPES[SHAPE][2]} layers of Llama 3.2 {SHAPE}"
        for forms in (RANDOM_FORMS, *QUANTISED_FORMS.values()):
            made = {form: make_random(form, checkpoint, home / form) for form in forms}
            groups[name if forms == RANDOM_FORMS else f"{name}, {forms[0]}"] = made
    rows = [
        row
        for group, folders in groups.items()
        for batch in arguments.batch
        for row in rows_of(
            group, folders, batch, arguments.steps, measured(folders, batch, arguments.steps, arguments.rounds)
        )
    ]
    header = [
        "model", "form", "batch", "MB read per step", "MB copied", "ms of CPU time per step",
        "tokens per second of CPU time", "of the read bandwidth", "speed-up", "bytes say", "speed-up / bytes",
        "copies say", "speed-up / copies",
    ]  # fmt: skip
    text = (
        f"Decoding with one thread after {PROMPT} prompt tokens, fused graph, float32 or quantised; of compressed "
        "models half of the numbers of every linear (`--density 0.5`); int8 in blocks of 32, int4 of 64, int4-128 of "
        "128. SmolLM2 is the "
        f"{MODEL_NAME}; Llama's shape has random weights, and a vocabulary cut as its layers are. Medians of "
        f"{arguments.steps} steps in turn in each of {arguments.rounds} processes, of speed-ups with quartiles; CPU "
        f"time. *Copied* is what onnxruntime makes of the weights at load, in memory. {BROUGHT}\n{machine()}.\n\n"
        f"{table(header, rows)}\n\nMade by `python benchmarks/decode.py --scratch FOLDER --layers {arguments.layers} "
        f"--batch {' '.join(map(str, arguments.batch))} --groups {' '.join(arguments.groups)}`."
    )
    if arguments.no_publish:
        print(text)
    else:
        publish("decode", text)


if __name__ == "__main__":
    main()
