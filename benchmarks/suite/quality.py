"""Measures the quality of every method at every size, with the same parameter budget for the whole model.

`auto` gets the size itself. Other methods get the density of all linears that gives the same size. KL is exact: the
original runs through its own exported graph on the same text. Calibration and evaluation use different texts.

Points in the results with the same setting are not measured again, so that you can split a long run.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common import Result, torch_threads
from benchmarks.fidelity import Yardstick, figures, text_arguments, text_setting
from benchmarks.suite import tasks
from curconvert import CalibrationOptions, ConvertOptions
from curconvert.base.errors import InputError
from curconvert.base.progress import silent
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.linears import total_parameters
from curconvert.checkpoint.types import Checkpoint
from curconvert.execution.local import LocalExecutor
from curconvert.jobs.measure import measure
from curconvert.jobs.prepare import prepare, sampled
from curconvert.jobs.produce import produce
from curconvert.methods.core.options import options_for_size
from curconvert_runtime import load
from curconvert_runtime.checks.fidelity import text_windows

ORIGINAL = "original"
SEARCH = "auto --max-kl"
"""This method finds the size itself."""
SHARED = "auto --share"
METHODS = ("auto", "soco", "modegpt", "neurons", "pifa", "svd-llm", "row-id", "cur", "asvd", "fwsvd", "svd", "curing")
WINDOWS = {"perplexity_1024": (1024, 10**9), "perplexity_512": (512, 24_576), "perplexity_128": (128, 24_576)}
"""Window length and most tokens of each perplexity; only measured for models that also get the tasks."""
LIMIT = 100.0
"""Models with a higher perplexity do not get the tasks."""


@dataclass(frozen=True)
class Point:
    """One method at one size.

    Attributes:
        method: One of `METHODS`, `SEARCH` or `SHARED`.
        target: Parameters of the whole model; 0 if the method finds the size.
        kept: The size as a share of the original, if it was given as a share.
    """

    method: str
    target: int
    kept: float | None

    @property
    def part(self) -> str:
        """Name of the table for this point."""
        return "points" if self.kept and self.method in METHODS else "auto"

    def key(self, max_kl: float) -> dict[str, Any]:
        """Return the values that identify the point's row in the table."""
        if self.part == "points":
            return {"method": self.method, "kept": self.kept, "target": self.target}
        if self.method == SEARCH:
            return {"option": f"{SEARCH} {max_kl:g}"}
        return {"option": f"{self.method} --target-params {self.target}"}


class Bench:
    """Makes and measures the models.

    Args:
        folder: Folder for temporary files.
        given: The command's options.
        result: Receives the figures.
    """

    def __init__(self, folder: Path, given: Namespace, result: Result) -> None:
        self._folder, self._given, self._result = folder, given, result
        self._checkpoint = open_checkpoint(str(given.model))
        self._whole = total_parameters(self._checkpoint)
        self._yardstick = Yardstick(folder, given)

    def original(self) -> None:
        """Measure the original on the tasks."""
        self._tasks(self._yardstick.path, {"method": ORIGINAL, "kept": 1.0})

    def compressed(self, points: Iterable[Point]) -> None:
        """Convert and measure the points; the original runs once for all of them."""
        wanted = {}
        for point in points:
            try:
                wanted[point] = options_of(self._checkpoint, point, self._given)
            except InputError as error:
                print(f"{point}: {error}")
        scratch, asked = Path(tempfile.mkdtemp(dir=self._folder)), list(wanted.values())
        start = time.perf_counter()
        prepared = sampled(prepare(self._checkpoint, asked[0]), asked[0], silent)
        context = prepared.context(asked[0], scratch, LocalExecutor(len(os.sched_getaffinity(0))), silent)
        measured = measure(context, asked)
        passes = time.perf_counter() - start
        for point, options in wanted.items():
            start, out = time.perf_counter(), self._folder / "out"
            try:
                through = replace(context, settings=options)
                plan = options.method.decide(through, measured)
            except InputError as error:
                print(f"{point}: {error}")
                continue
            out.mkdir()
            produce(out, through, prepared.companions, measured, plan, options, None)
            seconds = {"passes": passes, "seconds": time.perf_counter() - start}
            self._add(out, point, {"parameters": plan.parameters_after, **seconds})
            shutil.rmtree(out)
        shutil.rmtree(scratch)

    def _add(self, out: Path, point: Point, made: dict[str, Any]) -> None:
        """Measure an artifact and store its figures."""
        found = {**made, **figures(self._yardstick.fidelity(load(out, graph="portable")))}
        share = {"kept": made["parameters"] / self._whole}
        row = found if point.part == "points" else {**share, **found}
        self._result.add(point.part, row, **point.key(self._given.max_kl))
        if self._given.tasks and found["perplexity"] <= LIMIT:
            self._tasks(out, {"method": point.method, **share, "target": point.target})

    def _tasks(self, path: Path, key: dict[str, Any]) -> None:
        """Measure BLiMP, PIQA and the perplexities of `WINDOWS`."""
        scorer, tokenizer = tasks.Scorer.load(path), load(path, graph="portable").tokenizer
        blimp, piqa = self._given.tasks
        begin = tokenizer.begin  # SmolLM2's tokenizer adds none
        prefix = int(self._yardstick.artifact.config["bos_token_id"]) if begin is None else begin
        pairs = tasks.blimp(scorer, tokenizer, blimp, prefix, self._given.pairs)
        questions = tasks.piqa_questions(piqa)
        answers = tasks.piqa(questions, tasks.piqa_scores(scorer, tokenizer, questions, [prefix]))
        row: dict[str, float] = {"bfloat16": tasks.perplexity(scorer, self._yardstick.windows)}
        for name, correct in (("blimp", pairs), ("piqa", answers)):
            found = tasks.accuracy(correct)
            row |= {name: found["share"], f"{name}_error": found["error"], f"{name}_count": found["count"]}
        for name, (size, tokens) in WINDOWS.items():
            windows, _ = text_windows(self._yardstick.artifact, self._yardstick.text, size, tokens)
            row[name] = tasks.perplexity(scorer, windows)
        self._result.add("tasks", row, **key)


def options_of(checkpoint: Checkpoint, point: Point, given: Namespace) -> ConvertOptions:
    """Return the conversion options of a point."""
    calibration = CalibrationOptions(source=given.calibration)
    if point.method == SEARCH:
        return ConvertOptions.for_method("auto", max_kl=given.max_kl, calibration=calibration)
    if point.method == SHARED:
        return options_for_size(checkpoint, "auto", point.target, calibration=calibration, share=True)
    return options_for_size(checkpoint, point.method, point.target, calibration=calibration)


def missing(given: Namespace, whole: int, result: Result) -> list[Point]:
    """Return the points that are not in the results."""
    sizes = [(size, None) for size in given.parameters] or [(int(keep * whole), keep) for keep in given.keep]
    points = [
        Point(method, target, kept)
        for method in given.methods
        if method != ORIGINAL
        for target, kept in ([(0, None)] if method == SEARCH else sizes)
    ]
    return [point for point in points if not _stands(point, given, result)]


def _stands(point: Point, given: Namespace, result: Result) -> bool:
    row = result.find(point.part, **point.key(given.max_kl))
    if row is None:
        return False
    tasked = result.find("tasks", method=point.method, target=point.target) is not None
    return tasked or not given.tasks or row["perplexity"] > LIMIT


def main() -> None:
    """Convert and measure the points, and draw the plot."""
    given = arguments()
    setting = text_setting(given, CalibrationOptions(source=given.calibration))
    whole = total_parameters(open_checkpoint(str(given.model)))
    result = Result(given.out, setting | {"parameters": whole, "pairs": given.pairs}, torch_threads())
    points = missing(given, whole, result)
    wants_original = ORIGINAL in given.methods and given.tasks and result.find("tasks", method=ORIGINAL) is None
    # `auto` has its own calibration text: half of it is sampled from the model.
    own, rest = ([p for p in points if p.method.startswith("auto") is mine] for mine in (True, False))
    if points or wants_original:
        with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
            bench = Bench(Path(folder), given, result)
            if wants_original:
                bench.original()
            for group in filter(None, (own, rest)):
                bench.compressed(group)
    if given.plot:
        draw(result.rows("points"), given.plot)


def draw(points: list[dict[str, Any]], path: Path) -> None:
    """Plot divergence against size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for method in METHODS:
        own = sorted((p["parameters"] / 1e6, p["kl"]) for p in points if p["method"] == method)
        if own:
            x, y = zip(*own, strict=True)
            axes.plot(x, y, marker="o", label=method, linewidth=2.5 if method == "auto" else 1.2)
    axes.set_yscale("log")
    axes.set_xlabel("parameters, millions (float32: 4 MB each million)")
    axes.set_ylabel("mean KL(original ‖ compressed), nats per token")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def arguments() -> Namespace:
    """Read the command line."""
    parser = text_arguments("quality", __doc__)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.95, 0.9, 0.8, 0.7])
    parser.add_argument(
        "--parameters", type=int, nargs="+", default=[], help="sizes of the whole model, instead of --keep"
    )
    known = (ORIGINAL, SEARCH, SHARED, *METHODS)
    parser.add_argument("--methods", nargs="*", default=[ORIGINAL, SEARCH, *METHODS], choices=known)
    parser.add_argument("--max-kl", type=float, default=0.1, help=f"of {SEARCH}")
    parser.add_argument("--tasks", type=Path, nargs=2, default=[], metavar=("BLIMP", "PIQA"), help="their folders")
    parser.add_argument("--plot", type=Path, help="draw the plot here; the published one is docs/quality.png")
    parser.add_argument("--pairs", type=int, default=10, help="pairs of each of BLiMP's phenomena")
    return parser.parse_args()


if __name__ == "__main__":
    main()
