"""Serving: our runtime, onnxruntime-genai, optimum and torch on the same artifacts, each in a process of its own.

All take turns within a round, so that what else the machine does meets each of them; numbers are medians over rounds.
How long a process takes from its start to the first token is measured before, in rounds of its own, with nothing else
running.
`--clock cpu` counts the process's CPU seconds instead of the clock on the wall, with one thread: that is what to read
on a machine that is shared, where the wall says more about the neighbours.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import MODEL, MODEL_NAME, ROOT, machine, publish, table

from curconvert_runtime import Artifact
from curconvert_runtime.machine import MemoryReader
from curconvert_runtime.speed import weight_bytes

PEERS = ("curconvert", "onnxruntime-genai", "optimum", "torch", "curconvert, portable graph")
FORMS = {
    "dense": ("export",),
    "cur": ("convert", "--method", "cur"),
    "pifa": ("convert", "--method", "pifa"),
}
_SMALLER = ("--density", "0.5", "--layers", "all", "--targets", "all", "--calibration-sequences", "16", "--no-verify")


def make(form: str, model: Path, scratch: Path) -> Path:
    """Return the artifact of a form, made where it is not there yet."""
    out = scratch / form
    if not out.exists():
        command, *options = FORMS[form]
        more = () if command == "export" else _SMALLER
        subprocess.run(
            [sys.executable, "-m", "curconvert", command, str(model), "-o", str(out), "--dtype", "float32", "--quiet",
             *options, *more],
            check=True,
        )  # fmt: skip
    return out


class Peer:
    """A process that serves, once it has answered a request of eight tokens with one.

    Args:
        name: One of `PEERS`.
        folder: The artifact.
        threads: For each operator.
        optimum_python: Of optimum's environment.
        bytecode: Where the process keeps compiled Python, as an installation does.

    Attributes:
        start: Seconds from the start of the process to its first token, `wall` and `cpu`.
    """

    def __init__(self, name: str, folder: Path, threads: int, optimum_python: Path, bytecode: Path) -> None:
        python = optimum_python if name == "optimum" else Path(sys.executable)
        limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        begin = time.perf_counter()
        self._process = subprocess.Popen(
            [python, str(Path(__file__).with_name("serving_peers.py")), name, str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env=environment | limits | {"HF_HUB_OFFLINE": "1", "PYTHONPYCACHEPREFIX": str(bytecode)},
        )
        used = self.ask((1, 8, 0))["process"]
        self.start = {"wall": time.perf_counter() - begin, "cpu": used}

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


def measure(folder: Path, arguments: argparse.Namespace, record: Path, form: str) -> None:
    """Measure every peer on one artifact; a line of JSON per answer goes to the record."""
    bytecode = arguments.scratch / "bytecode"

    def begin(name: str) -> Peer:
        return Peer(name, folder, arguments.threads, arguments.optimum_python, bytecode)

    starts: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.peers}
    for turn in range(arguments.starts + 1):
        for name in arguments.peers if turn % 2 == 0 else arguments.peers[::-1]:
            peer = begin(name)
            peer.close()
            if turn > 0:  # the first one compiles, hashes and reads files that are in nobody's memory yet
                starts[name].append(peer.start)
    peers = {name: begin(name) for name in arguments.peers}
    reader = MemoryReader(arguments.threads)
    with record.open("a", encoding="utf-8") as file:
        for turn in range(arguments.rounds + 1):
            for batch in arguments.batch:
                for prompt in arguments.prompt:
                    names = list(peers) if turn % 2 == 0 else list(peers)[::-1]
                    for name in names:
                        answer = peers[name].ask((batch, prompt, arguments.generated))
                        if turn > 0:
                            place = {"form": form, "peer": name, "batch": batch, "prompt": prompt, "turn": turn}
                            rest = {"starts": starts[name], "read": reader.bytes_per_second()}
                            file.write(json.dumps({**place, **answer, **rest}) + "\n")
                            file.flush()
    for peer in peers.values():
        peer.close()


def _cell(values: list[float], digits: int = 1) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def report(lines: list[dict[str, Any]], arguments: argparse.Namespace, sizes: dict[str, int]) -> str:
    """Return the table; ratios are to our runtime's fused graph, round by round."""
    clock, rows = arguments.clock, []
    for form in arguments.forms:
        for batch in arguments.batch:
            for prompt in arguments.prompt:
                here = [
                    line for line in lines if (line["form"], line["batch"], line["prompt"]) == (form, batch, prompt)
                ]
                ours = {line["turn"]: line[clock] for line in here if line["peer"] == PEERS[0]}
                for peer in arguments.peers:
                    own = {line["turn"]: line for line in here if line["peer"] == peer}
                    prefill = [batch * prompt / line[clock][0] for line in own.values()]
                    decode = [batch * arguments.generated / line[clock][1] for line in own.values()]
                    ratios = [
                        [line[clock][part] / ours[turn][part] for turn, line in own.items() if turn in ours]
                        for part in (0, 1)
                    ]
                    peak = max(line["peak"] for line in own.values()) / 1e6
                    starts = [start[clock] for start in next(iter(own.values()))["starts"]]
                    rows.append(
                        [form, str(batch), str(prompt), peer, _cell(prefill, 0), _cell(decode),
                         *(_cell(ratio, 2) if peer != PEERS[0] else "" for ratio in ratios), _cell(starts, 2),
                         f"{peak:,.0f}"]
                    )  # fmt: skip
    per = "second of CPU time" if clock == "cpu" else "second"
    read = statistics.median(line["read"] for line in lines) / 1e9
    named = ", ".join(f"{form} {size / 1e6:.0f} MB" for form, size in sizes.items())
    head = [
        "form", "batch", "prompt", "served by", f"prefill, tokens per {per}", f"decode, tokens per {per}",
        "prefill: ours is faster by", "decode: ours is faster by", "start, s", "peak, MB",
    ]  # fmt: skip
    return (
        f"{MODEL_NAME}, float32, {arguments.threads} thread(s), {arguments.generated} tokens generated, medians (least "
        f"to most) of {arguments.rounds} rounds in turn. Weights read for a token: {named}; memory was read at "
        f"{read:.1f} GB/s. {machine()}.\n*start* is from the start of the process to the first token of a "
        f"short request, medians of {arguments.starts} processes in turn; of our runtime it has the checks of the "
        f"folder in it, with digests that are remembered.\n\n{table(head, rows)}\n\n"
        "Made by `python benchmarks/serving.py --scratch FOLDER --publish`, and `--optimum-python` for optimum's."
    )


def main() -> None:
    """Measure what is asked for and publish the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--scratch", type=Path, required=True, help="Artifacts, and the record of all answers.")
    parser.add_argument("--optimum-python", type=Path, default=ROOT / ".venv-optimum" / "bin" / "python")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--prompt", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--generated", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=9, help="Processes of each peer whose start is timed.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--publish", action="store_true", help="Put the table into docs/benchmarks.md.")
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    folders = {form: make(form, arguments.model, arguments.scratch) for form in arguments.forms}
    record = arguments.scratch / "serving.jsonl"
    record.unlink(missing_ok=True)
    for form, folder in folders.items():
        measure(folder, arguments, record, form)
    lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    sizes = {form: weight_bytes(Artifact.open(folder), "fused") for form, folder in folders.items()}
    text = report(lines, arguments, sizes)
    if arguments.publish:
        publish("serving", text)
    else:
        print(text)


if __name__ == "__main__":
    main()
