"""Serving: our runtime, onnxruntime-genai, optimum and torch on the same artifacts, each in a process of its own.

All take turns within a round, on the same cores, so that what else the machine does meets each of them; ratios are of
one round, numbers medians over rounds. Each round starts each process anew: where the system happens to put a process's
memory changes its speed by several percent for as long as it lives. Memory is brought before each of them, see
`common.bring_memory`; with `--idle` the machine is left alone instead. What our runtime does where the system has no
huge pages is the peer with small ones.
How long a process takes from its start to its first token is `start.py`'s business. No other peer is in memory
meanwhile.
`--clock cpu` counts the process's CPU seconds instead of the clock on the wall, with one thread: that is what to read
on a machine that is shared, where the wall says more about the neighbours.

Each form's answers are appended to `--results` at once; what stands there is not measured again, so a long run can be
made in parts. With `--publish` the tables are written from the file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common import BROUGHT, MODEL, MODEL_NAME, ROOT, bring_memory, machine, publish, table
from scale import SHAPES
from shapes import FORMS as RANDOM_FORMS
from shapes import hollow, make_random

from curconvert.base.machine import MemoryReader
from curconvert.jobs.bench.speed import weight_bytes
from curconvert_runtime import Artifact

PEERS = ("curconvert", "curconvert, small pages", "onnxruntime-genai", "optimum", "torch")
FORMS = {
    "dense": ("export",),
    "cur": ("convert", "--method", "cur"),
    "pifa": ("convert", "--method", "pifa"),
}
STORED = ("float32", "int8", "int4")
SHAPE = "1B"
_SMALLER = ("--density", "0.5", "--layers", "all", "--targets", "all", "--calibration-sequences", "16", "--no-verify")


def make(form: str, model: Path, scratch: Path, stored: str = "float32") -> Path:
    """Return the artifact of a form, made where it is not there yet.

    Args:
        form: A key of `FORMS`.
        model: The original.
        scratch: Holds the artifacts.
        stored: One of `STORED`.
    """
    out = scratch / (form if stored == "float32" else f"{form}-{stored}")
    if not out.exists():
        command, *options = FORMS[form]
        more = () if command == "export" else _SMALLER
        quantized = () if stored == "float32" else ("--quantize", stored)
        subprocess.run(
            [sys.executable, "-m", "curconvert", command, str(model), "-o", str(out), "--dtype", "float32", "--quiet",
             *options, *more, *quantized],
            check=True,
        )  # fmt: skip
    return out


def artifacts(given: argparse.Namespace) -> dict[str, Path]:
    """Return the folders of all forms that are asked for, by what they are called in the table."""
    if not given.layers:
        pairs = [(form, stored) for form in given.forms for stored in given.stored]
        return {f"{form}, {stored}": make(form, given.model, given.scratch, stored) for form, stored in pairs}
    home = given.scratch / f"{SHAPE}-{given.layers}"
    checkpoint = hollow(home / "source", SHAPE, given.layers)
    label = f"{given.layers} of the {SHAPES[SHAPE][2]} layers of Llama 3.2 {SHAPE}, "
    return {label + form: make_random(form, checkpoint, home / form) for form in RANDOM_FORMS}


class Peer:
    """A process that serves, once it has answered a request of eight tokens with one.

    Args:
        name: One of `PEERS`.
        folder: The artifact.
        threads: For each operator.
        optimum_python: Of optimum's environment.
        bytecode: Where the process keeps compiled Python, as an installation does.
        idle: Seconds to leave the machine alone for before; 0 brings memory instead.

    Attributes:
        start: Seconds from the start of the process to its first token.
    """

    def __init__(
        self, name: str, folder: Path, threads: int, optimum_python: Path, bytecode: Path, idle: float = 0.0
    ) -> None:
        python = optimum_python if name == "optimum" else Path(sys.executable)
        limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        if idle:
            time.sleep(idle)
        else:
            bring_memory(folder)
        begin = time.perf_counter()
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name("serving_peers.py")), name, str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env=environment | limits | {"HF_HUB_OFFLINE": "1", "PYTHONPYCACHEPREFIX": str(bytecode)},
        )
        self.ask((1, 8, 0))
        self.start = time.perf_counter() - begin

    def ask(self, workload: tuple[int, int, int]) -> dict[str, Any]:
        """Serve one request."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(workload) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def measure(name: str, folder: Path, given: argparse.Namespace, workloads: list[tuple[int, int]], rounds: int) -> None:
    """Measure every peer on one artifact; the answers of a round go to the results as one line.

    Args:
        name: What the artifact is called in the table.
        folder: The artifact.
        given: The command's options.
        workloads: Batches and lengths of prompts.
        rounds: How often.
    """
    bytecode = given.scratch / "bytecode"
    asked = asked_of(name, given)

    def begin(peer: str) -> Peer:
        return Peer(peer, folder, given.threads, given.optimum_python, bytecode, given.idle)

    for peer in asked:  # once: compiles, hashes and reads files that are in nobody's memory yet
        begin(peer).close()
    given.results.parent.mkdir(parents=True, exist_ok=True)
    reader, weights = MemoryReader(given.threads), weight_bytes(Artifact.open(folder), "fused")
    for turn in range(rounds):
        answers: list[dict[str, Any]] = []
        for peer in asked if turn % 2 == 0 else asked[::-1]:
            process = begin(peer)
            for batch, prompt in workloads:
                answer = process.ask((batch, prompt, given.generated))
                answers.append({"peer": peer, "batch": batch, "prompt": prompt, "turn": turn, **answer})
            process.close()
        line = {
            "name": name, **setting_of(given), "weights": weights, "read": reader.bytes_per_second(),
            "answers": answers,
        }  # fmt: skip
        with given.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def asked_of(name: str, given: argparse.Namespace) -> list[str]:
    """Return the peers of an artifact: torch is not asked to serve quantised matrices."""
    return [peer for peer in given.peers if peer != "torch" or not any(width in name for width in STORED[1:])]


def setting_of(given: argparse.Namespace) -> dict[str, Any]:
    """Return what lines have in common that may stand in one table."""
    return {"generated": given.generated, "threads": given.threads, "idle": given.idle}


def measured(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return what `--results` holds of each artifact in this setting, its lines put together."""
    lines = given.results.read_text(encoding="utf-8").splitlines() if given.results.exists() else []
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(map(json.loads, lines)):
        if setting_of(given).items() <= ({"idle": 0.0} | line).items():
            whole = found.setdefault(line["name"], {**line, "answers": [], "read": []})
            whole["read"].append(line["read"])
            whole["answers"] += [{**answer, "turn": (number, answer["turn"])} for answer in line["answers"]]
    return found


def workloads_of(line: dict[str, Any]) -> list[tuple[int, int]]:
    """Return the batches and lengths of prompts that were measured, in order."""
    return sorted({(answer["batch"], answer["prompt"]) for answer in line["answers"]})


def _cell(values: list[float], digits: int = 1) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def spans_of(line: dict[str, Any], workload: tuple[int, int], clock: str) -> dict[str, dict[Any, list[float]]]:
    """Return the seconds to the first token and after it, by peer and by round; of rounds that our runtime was in."""
    spans: dict[str, dict[Any, list[float]]] = {peer: {} for peer in PEERS}
    for answer in line["answers"]:
        if (answer["batch"], answer["prompt"]) == workload:
            spans[answer["peer"]][answer["turn"]] = answer[clock]
    ours = spans[PEERS[0]].keys()
    return {peer: {turn: span for turn, span in found.items() if turn in ours} for peer, found in spans.items()}


def slower(spans: dict[str, dict[Any, list[float]]], peer: str, than: str, part: int) -> list[float]:
    """Return how many times as long a peer takes as another, round by round; part 0 is prefill, 1 decode."""
    return [span[part] / spans[than][turn][part] for turn, span in spans[peer].items() if turn in spans[than]]


def speeds(line: dict[str, Any], clock: str, peers: list[str]) -> list[list[str]]:
    """Return a row for each workload: our speed, and by how much the others take longer, round by round."""
    rows = []
    for batch, prompt in workloads_of(line):
        spans = spans_of(line, (batch, prompt), clock)
        ours = spans[PEERS[0]].values()
        prefill = [batch * prompt / first for first, _ in ours]
        decode = [batch * line["generated"] / rest for _, rest in ours]
        ratios = [
            _cell(slower(spans, peer, PEERS[0], part), 2) if spans[peer] else ""
            for peer in peers[1:]
            for part in (0, 1)
        ]
        rows.append([line["name"], str(batch), str(prompt), _cell(prefill, 0), _cell(decode), *ratios])
    return rows


def ranges(lines: Iterable[dict[str, Any]], clock: str) -> str:
    """Say how many times as long onnxruntime-genai takes as each of ours, over all rows: of rounds, and of medians."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for line in lines:
        for workload in workloads_of(line):
            spans = spans_of(line, workload, clock)
            for than in PEERS[:2]:
                both = spans[than].keys() & spans[PEERS[2]].keys()
                for part in (0, 1) if both else ():
                    theirs, ours = (statistics.median(spans[peer][t][part] for t in both) for peer in (PEERS[2], than))
                    middle = statistics.median(slower(spans, PEERS[2], than, part))
                    found.setdefault((than, part), []).append((middle, theirs / ours))
    said = []
    for (peer, part), pairs in found.items():
        of_rounds, of_medians = zip(*pairs, strict=True)
        said.append(
            f"{('prefill', 'decode')[part]} {min(of_rounds):.2f} to {max(of_rounds):.2f}, as ratios of medians "
            f"{min(of_medians):.2f} to {max(of_medians):.2f} ({peer})"
        )
    return f"onnxruntime-genai takes as many times as long, over all rows: {'; '.join(said)}."


def peaks(line: dict[str, Any], peers: list[str]) -> list[str]:
    """Return a form's row of peak memory, with the smallest batch: later batches of a process only add to it."""
    smallest = min(batch for batch, _ in workloads_of(line))
    answers = [answer for answer in line["answers"] if answer["batch"] == smallest]
    found = {peer: [answer["peak"] for answer in answers if answer["peer"] == peer] for peer in peers}
    cells = [f"{max(values) / 1e6:,.0f}" if values else "" for values in found.values()]
    return [line["name"], f"{line['weights'] / 1e6:,.0f}", *cells]


def report(lines: dict[str, dict[str, Any]], given: argparse.Namespace) -> str:
    """Return the tables."""
    asked = {answer["peer"] for line in lines.values() for answer in line["answers"]}
    peers = [peer for peer in PEERS if peer in asked]
    per = "second of CPU time" if given.clock == "cpu" else "second"
    others = [f"{peer}: {part}" for peer in peers[1:] for part in ("prefill", "decode")]
    head = ["artifact", "batch", "prompt", f"prefill, tokens per {per}", f"decode, tokens per {per}", *others]
    rows = [row for line in lines.values() for row in speeds(line, given.clock, peers)]
    head_peaks = ["artifact", "MB of weights a token", *(f"peak, MB: {peer}" for peer in peers)]
    cells = (
        (line["name"], a["peer"], a["batch"], a["prompt"])
        for line in lines.values()
        for a in line["answers"]
        if a["peer"] != PEERS[0]  # which others are measured beside, one more time each
    )
    rounds = set(Counter(cells).values())
    read = statistics.median(value for line in lines.values() for value in line["read"]) / 1e9
    speed = f"{table(head, rows)}\n\n{ranges(lines.values(), given.clock)}\n\n"
    made = "Made by `python benchmarks/serving.py --scratch FOLDER --publish"
    if given.idle:
        return (
            f"The same once more, but before each process the machine was left alone for {given.idle:g} seconds; "
            f"{from_to(rounds)} rounds.\n\n{speed}{made} --idle {given.idle:g}`."
        )
    return (
        f"{MODEL_NAME}, and the shape of Llama 3.2 {SHAPE} with random weights and a vocabulary cut as its layers are; "
        "of compressed models half of the numbers of every linear; int4 in blocks of 64, int4-128 of 128. "
        f"{given.threads} thread(s), every process on the "
        f"same core(s), {given.generated} tokens generated after the prompt, clock: {given.clock}. Our runtime's "
        "tokens, and how many times as long the others take for the same, so that above 1 ours is faster; medians "
        f"(least to most) of {from_to(rounds)} rounds in turn, each with new processes. Memory was read at {read:.1f} "
        f"GB/s. {machine()}.\n\n"
        f"{speed}"
        "optimum runs the portable graph with its default session options, in which onnxruntime unpacks quantised "
        "weights in every call; `session.disable_quant_qdq` would do it once, into the memory of float32.\n\n"
        "*Peak* is the process's largest resident memory, with the smallest batch. By default our runtime takes those "
        "huge pages that the system has at hand; *small pages*, `CpuOptions(huge_pages=False)`, is what it does where "
        f"there are none. {BROUGHT}\n\n"
        f"{table(head_peaks, [peaks(line, peers) for line in lines.values()])}\n\n"
        f"{made}`, again with `--layers 4`, and `--optimum-python` for optimum's."
    )


def from_to(values: set[int]) -> str:
    """Return the least and the largest of some numbers, once if they are the same."""
    return " to ".join(str(value) for value in sorted({min(values), max(values)}))


def main() -> None:
    """Measure what is missing and publish the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--layers", type=int, default=0, help=f"of Llama 3.2 {SHAPE}, random, instead of --model")
    parser.add_argument("--scratch", type=Path, required=True, help="artifacts, made where they are not there yet")
    parser.add_argument("--optimum-python", type=Path, default=ROOT / ".venv-optimum" / "bin" / "python")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--stored", nargs="+", default=list(STORED), choices=STORED)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--prompt", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--generated", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5, help="at least so many of everything")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--idle", type=float, default=0.0, help="seconds before each process, instead of memory")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--results", type=Path, default=ROOT / ".cache" / "benchmarks" / "serving.jsonl")
    parser.add_argument("--publish", action="store_true", help="write docs/benchmarks.md from --results")
    given = parser.parse_args()
    given.scratch.mkdir(parents=True, exist_ok=True)
    done = measured(given)
    for name, folder in artifacts(given).items():
        answers = done[name]["answers"] if name in done else []
        known = Counter((answer["peer"], answer["batch"], answer["prompt"]) for answer in answers)
        workloads = [(batch, prompt) for batch in sorted(given.batch) for prompt in given.prompt]
        missing = {
            workload: given.rounds - min(known[peer, *workload] for peer in asked_of(name, given))
            for workload in workloads
        }
        if wanted := [workload for workload, rounds in missing.items() if rounds > 0]:
            measure(name, folder, given, wanted, max(missing.values()))
    text = report(measured(given), given)
    if given.publish:
        publish("serving-idle" if given.idle else "serving", text)
    else:
        print(text)


if __name__ == "__main__":
    main()
