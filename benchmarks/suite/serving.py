"""Compares this project's runtime with onnxruntime-genai, optimum and torch, on the same artifacts.

Each runtime runs in its own process. Every round starts all processes again, and they alternate on the same cores, so
that other load affects all of them alike. Every second round reverses the order. The placement of a process's memory
changes its speed by several percent until it ends, so there are several rounds. A ratio compares the medians over all
rounds; its minimum and maximum come from single rounds.

Without options, it measures what a release must not lose: dense and `cur`, float32 and int4, against
onnxruntime-genai. The peer `hugetlb` is this project's runtime with `GLIBC_TUNABLES=glibc.malloc.hugetlb=1`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import ROOT, Result, model_arguments, model_name
from benchmarks.suite.artifacts import COMPRESSED, FORMS, SHAPE, STORED, make, make_layers
from benchmarks.suite.random_artifacts import FORMS as RANDOM_FORMS

OURS = "curconvert"
PEERS = (OURS, "hugetlb", "genai", "optimum", "torch")
_ENVIRONMENTS = {"hugetlb": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}}
PARTS = ("prefill", "decode", "start")
Workload = tuple[int, int]  # batch, tokens of each prompt


class Peer:
    """A serving process that has already answered a first request (eight prompt tokens, one new token).

    Attributes:
        start: Seconds from the start of the process to its first token.
    """

    def __init__(self, name: str, folder: Path, given: Namespace) -> None:
        """Start the process and wait for its first token.

        Args:
            name: One of `PEERS`.
            folder: Folder of the artifact.
            given: The command's options.
        """
        python = given.optimum_python if name == "optimum" else Path(sys.executable)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(given.threads))
        environment |= {"HF_HUB_OFFLINE": "1", "PYTHONPYCACHEPREFIX": str(given.scratch.resolve() / "bytecode")}
        serves = OURS if name in _ENVIRONMENTS else name
        self._name, begin = name, time.perf_counter()
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.suite.serving_peers", serves, str(folder.resolve()), str(given.threads)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env=environment | _ENVIRONMENTS.get(name, {}),
        )
        self.ask((1, 8), 0)
        self.start = time.perf_counter() - begin

    def ask(self, workload: Workload, generated: int) -> dict[str, float]:
        """Send one request; return the seconds to the first token and after it, and the process's peak memory."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([*workload, generated]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._name}: exit code {self._process.wait()}, without an answer")
        answer: dict[str, float] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


Outputs = dict[tuple[str, Workload], list[dict[str, float]]]


def measured(folder: Path, peers: Sequence[str], workloads: Sequence[Workload], given: Namespace) -> Outputs:
    """Return each peer's answers on one artifact, by round.

    Args:
        folder: Folder of the artifact.
        peers: Names of `PEERS`.
        workloads: Requests for each process, in order.
        given: The command's options.
    """
    for peer in peers:  # start each once, to compile, hash and read files before the measurement
        Peer(peer, folder, given).close()
    answers: Outputs = {(peer, workload): [] for peer in peers for workload in workloads}
    for turn in range(given.rounds):
        for peer in peers if turn % 2 == 0 else peers[::-1]:
            process = Peer(peer, folder, given)
            for workload in workloads:
                answers[peer, workload].append({**process.ask(workload, given.generated), "start": process.start})
            process.close()
    return answers


def row_of(answers: Outputs, workload: Workload, generated: int) -> dict[str, Any]:
    """Return the runtime's figures of one workload, and the ratios of the other peers."""
    found = {peer: rounds for (peer, asked), rounds in answers.items() if asked == workload}
    ours, (batch, prompt) = found.pop(OURS), workload
    row: dict[str, Any] = {
        "prefill": span([batch * prompt / answer["prefill"] for answer in ours]),
        "decode": span([batch * generated / answer["decode"] for answer in ours]),
        "start": span([answer["start"] for answer in ours]),
        "peak": max(answer["peak"] for answer in ours),
    }
    for peer, theirs in found.items():
        row[peer] = {part: times(theirs, ours, part) for part in PARTS}
        row[peer]["peak"] = max(answer["peak"] for answer in theirs)
    return row


def span(values: Sequence[float]) -> dict[str, float]:
    """Return median, minimum and maximum."""
    return {"median": median(values), "least": min(values), "most": max(values)}


def times(theirs: Sequence[dict[str, float]], ours: Sequence[dict[str, float]], part: str) -> dict[str, float]:
    """Return a peer's time divided by the runtime's: the ratio of medians, and the extreme ratios of rounds."""
    rounds = [their[part] / our[part] for their, our in zip(theirs, ours, strict=True)]
    middle = median(their[part] for their in theirs) / median(our[part] for our in ours)
    return {**span(rounds), "median": middle}


def artifacts(given: Namespace) -> dict[str, Path]:
    """Return the folders of all requested artifacts, by their name in the table."""
    if given.layers:
        name, made = make_layers(given.layers, RANDOM_FORMS, given.scratch)
        return {f"{name}, {form}": folder for form, folder in made.items()}
    asked = product(given.forms, given.stored)
    return {f"{form}, {stored}": make(form, given.model, given.scratch, stored) for form, stored in asked}


def main() -> None:
    """Make the artifacts and measure each."""
    given = arguments()
    given.scratch.mkdir(parents=True, exist_ok=True)
    setting = {
        "model": model_name(given.model), "compressed": COMPRESSED,
        "int4": "in blocks of 64, int4-128 of 128", "generated": given.generated, "rounds": given.rounds,
        "ratios": "of medians (least to most of a round)",
    }  # fmt: skip
    result = Result(given.out, setting, given.threads)
    workloads = sorted(product(given.batch, given.prompt))
    for name, folder in artifacts(given).items():
        quantized = any(width in name for width in STORED[1:])
        peers = [peer for peer in given.peers if not (quantized and peer == "torch")]  # torch cannot load quantized
        answers = measured(folder, peers, workloads, given)
        for batch, prompt in workloads:
            row = row_of(answers, (batch, prompt), given.generated)
            result.add("serving", row, artifact=name, batch=batch, prompt=prompt)


def arguments() -> Namespace:
    """Read the command line."""
    parser = model_arguments("serving", __doc__)
    parser.add_argument("--layers", type=int, default=0, help=f"of Llama 3.2 {SHAPE}, random, instead of --model")
    parser.add_argument("--scratch", type=Path, required=True, help="folder of the artifacts; missing ones are made")
    parser.add_argument("--optimum-python", type=Path, default=ROOT / ".venv-optimum" / "bin" / "python")
    parser.add_argument("--forms", nargs="+", default=["dense", "cur"], choices=list(FORMS))
    parser.add_argument("--stored", nargs="+", default=["float32", "int4"], choices=STORED)
    parser.add_argument("--peers", nargs="+", default=list(PEERS[:3]), choices=PEERS, help=f"{OURS} is one of them")
    parser.add_argument("--prompt", type=int, nargs="+", default=[128])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--generated", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
