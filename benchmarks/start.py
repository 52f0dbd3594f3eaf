"""Start: from the start of a process to its first token, our runtime beside onnxruntime-genai and optimum.

The peers are those of `serving.py`. They take turns, each in a process of its own for each round, and the files are in
the system's cache; memory is brought before each process. `--threads` cores are what every process may use: 1, and then
all of them, is published.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path

import serving
from common import BROUGHT, MODEL, MODEL_NAME, ROOT, machine, publish, table

PEERS = ("curconvert", "curconvert, small pages", "curconvert, huge pages", "onnxruntime-genai", "optimum")


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


def measured(results: Path) -> dict[tuple[str, int], dict[str, list[float]]]:
    """Return the seconds of each peer by artifact and threads, of all lines together."""
    found: dict[tuple[str, int], dict[str, list[float]]] = {}
    for line in results.read_text(encoding="utf-8").splitlines() if results.exists() else []:
        entry = json.loads(line)
        seconds = found.setdefault((entry["name"], entry["threads"]), {})
        for peer, values in entry["seconds"].items():
            seconds.setdefault(peer, []).extend(values)
    return found


def report(results: Path) -> str:
    """Return the table."""
    found = measured(results)
    rows, ratios, counts = [], [], []
    for (name, threads), seconds in found.items():
        if not {"curconvert", "onnxruntime-genai"} <= seconds.keys():
            continue  # measured in parts, and this one is not complete
        medians = {peer: statistics.median(values) for peer, values in seconds.items()}
        cells = [
            f"{medians[peer]:.2f} ({min(seconds[peer]):.2f} to {max(seconds[peer]):.2f})" if peer in seconds else ""
            for peer in PEERS
        ]
        ratios.append(medians["onnxruntime-genai"] / medians["curconvert"])
        counts += [len(values) for peer, values in seconds.items() if peer != "optimum"]
        rows.append([name, str(threads), *cells, f"{ratios[-1]:.2f}"])
    head = ["artifact", "threads", *(f"{peer}, s" for peer in PEERS), "onnxruntime-genai / curconvert"]
    optimum = max(len(seconds.get("optimum", [])) for seconds in found.values())
    return (
        f"{MODEL_NAME}, fused graph (optimum: portable), a request of 8 tokens; the models of the table of serving. "
        f"Medians (least to most) of {serving.from_to(set(counts))} processes each, in turn; of optimum {optimum}. "
        "Of our runtime the checks of the folder are in it, with digests that are remembered; of all, Python and "
        "NumPy. Small and huge pages are `CpuOptions(huge_pages=False)` and `True`; by default our runtime takes the "
        f"huge pages that the system has at hand. {BROUGHT} {machine()}.\n\n{table(head, rows)}\n\n"
        f"onnxruntime-genai takes {min(ratios):.2f} to {max(ratios):.2f} times as long as our runtime.\n\n"
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
    done = measured(given.results)
    for form in given.forms:
        for stored in given.stored:
            folder = serving.make(form, given.model, given.scratch, stored)
            for threads in given.threads:
                name = f"{form}, {stored}"
                if set(given.peers) - done.get((name, threads), {}).keys():
                    measure(name, folder, threads, given)
    text = report(given.results)
    if given.publish:
        publish("start", text)
    else:
        print(text)


if __name__ == "__main__":
    main()
