"""Start: from the start of a process to its first token, our runtime beside onnxruntime-genai and optimum.

The peers are those of `serving.py`. They take turns, each in a process of its own for each round, and the files are in
the system's cache. `--threads` cores are what every process may use: 1, and then all of them, is published.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

import serving
from common import MODEL, MODEL_NAME, ROOT, machine, publish, table

PEERS = ("curconvert", "curconvert, huge pages", "onnxruntime-genai", "optimum")


def measure(name: str, folder: Path, threads: int, given: argparse.Namespace) -> None:
    """Start every peer in turn; all times go to the results as one line."""
    seconds: dict[str, list[float]] = {peer: [] for peer in given.peers}

    def begin(peer: str) -> float:
        process = serving.Peer(peer, folder, threads, given.optimum_python, given.scratch / "bytecode")
        process.close()
        return process.start

    for peer in given.peers:  # once: compiles, hashes and reads files that are in nobody's memory yet
        begin(peer)
    for turn in range(given.rounds):
        for peer in given.peers if turn % 2 == 0 else given.peers[::-1]:
            if peer != "optimum" or turn < given.optimum_rounds:
                seconds[peer].append(begin(peer))
    given.results.parent.mkdir(parents=True, exist_ok=True)
    with given.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"name": name, "threads": threads, "seconds": seconds}) + "\n")


def report(given: argparse.Namespace) -> str:
    """Return the table."""
    lines = [json.loads(line) for line in given.results.read_text(encoding="utf-8").splitlines()]
    rows = []
    for line in lines:
        seconds = line["seconds"]
        medians = {peer: statistics.median(values) for peer, values in seconds.items()}
        cells = [f"{medians[peer]:.2f} ({min(seconds[peer]):.2f} to {max(seconds[peer]):.2f})" for peer in medians]
        ratio = medians["onnxruntime-genai"] / medians["curconvert"]
        rows.append([line["name"], str(line["threads"]), *cells, f"{ratio:.2f}"])
    peers = list(lines[0]["seconds"])
    rounds = len(lines[0]["seconds"]["curconvert"])
    head = ["artifact", "threads", *(f"{peer}, s" for peer in peers), "onnxruntime-genai / curconvert"]
    return (
        f"{MODEL_NAME}, fused graph (optimum: portable), a request of 8 tokens; the models of the table of serving. "
        f"Medians (least to most) of {rounds} processes each, in turn; of optimum {given.optimum_rounds}. Of our "
        "runtime the checks of the folder are in it, with digests that are remembered; of all, Python and NumPy. "
        f"*Huge pages* is `CpuOptions(huge_pages=True)`. {machine()}.\n\n{table(head, rows)}\n\n"
        "Made by `python benchmarks/start.py --scratch FOLDER --publish`."
    )


def main() -> None:
    """Measure what is missing and publish the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--scratch", type=Path, required=True, help="artifacts, made where they are not there yet")
    parser.add_argument("--optimum-python", type=Path, default=ROOT / ".venv-optimum" / "bin" / "python")
    parser.add_argument("--forms", nargs="+", default=list(serving.FORMS), choices=list(serving.FORMS))
    parser.add_argument("--stored", nargs="+", default=list(serving.STORED), choices=serving.STORED)
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, len(os.sched_getaffinity(0))}))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--optimum-rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=ROOT / ".cache" / "benchmarks" / "start.jsonl")
    parser.add_argument("--publish", action="store_true", help="write docs/benchmarks.md from --results")
    given = parser.parse_args()
    known = given.results.read_text(encoding="utf-8").splitlines() if given.results.exists() else []
    done = {(line["name"], line["threads"]) for line in map(json.loads, known)}
    for form in given.forms:
        for stored in given.stored:
            folder = serving.make(form, given.model, given.scratch, stored)
            for threads in given.threads:
                if (f"{form}, {stored}", threads) not in done:
                    measure(f"{form}, {stored}", folder, threads, given)
    publish("start", report(given)) if given.publish else sys.stdout.write(report(given) + "\n")


if __name__ == "__main__":
    main()
