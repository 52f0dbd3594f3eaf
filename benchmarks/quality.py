"""Quality under one budget of parameters for the whole model: every method at every size.

`auto` gets the size itself; the others get the density of all linears that gives the same size. KL is exact: the
original runs through its own exported graph on the same text. The calibration text is another than the evaluation's.

Each result is appended to `--results` at once; what stands there is not measured again, so a long run can be made in
parts. With `--publish` the table and the plot are written from the file.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tasks
from common import MODEL, MODEL_NAME, ROOT, machine, publish, table
from curconvert.jobs.stages import decide, measure, prepare, produce, sampled
from numpy.typing import NDArray

from curconvert import CalibrationOptions, ConvertOptions, SourceOptions, export
from curconvert.base.errors import InputError
from curconvert.base.progress import silent
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.linears import total_parameters
from curconvert.checkpoint.types import Checkpoint
from curconvert.execution.local import LocalExecutor
from curconvert.methods.core.options import options_for_size
from curconvert_runtime import load
from curconvert_runtime.checks.fidelity import exact_fidelity, text_windows
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.serve.session import Session

ORIGINAL = "original"
SEARCH = "auto-search"
"""`auto` with `--max-kl`: it finds the size."""
GIVEN = "auto-given"
"""`auto` on the given text alone."""
SHARED = "auto-share"
"""`auto` with `--share`."""
METHODS = (
    "auto",
    SEARCH,
    GIVEN,
    SHARED,
    "soco",
    "modegpt",
    "neurons",
    "pifa",
    "svd-llm",
    "row-id",
    "cur",
    "asvd",
    "fwsvd",
    "svd",
    "curing",
)
_PLOT = "quality.png"


class Recorded:
    """The original's logits on the windows, computed once and kept in a file."""

    def __init__(self, session: Session, windows: NDArray[np.int64], path: Path) -> None:
        shape = (*windows.shape, session.vocab_size)
        self._logits = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        self._rows = {row.tobytes(): index for index, row in enumerate(windows)}
        for index, row in enumerate(windows):
            self._logits[index] = session.logits(row)

    def logits(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return (tokens, vocabulary) of one of the windows."""
        return np.asarray(self._logits[self._rows[ids.tobytes()]])


class Results:
    """Measured points, one JSON object a line; those of another setting are kept, but not seen.

    Attributes:
        setting: Of these points.
        points: By method and size.
    """

    def __init__(self, path: Path, setting: dict[str, Any], limit: float = math.inf) -> None:
        self._path, self.setting, self._limit = path, setting, limit
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.points = {self._key(p): p for p in map(json.loads, lines) if p["setting"] == setting}

    def add(self, point: dict[str, Any]) -> None:
        """Append a point; a later one of the same method and size counts."""
        point = {**point, "setting": self.setting}
        self.points[self._key(point)] = point
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(point) + "\n")

    def has(self, method: str, target: int, measure: str) -> bool:
        """Tell whether a measure of a point is there, or the reason why it cannot be."""
        point = self.points.get((method, target), {})
        lost = "fidelity" in point and point["fidelity"]["perplexity_compressed"] > self._limit
        return bool(point.get(measure)) or "reason" in point or lost

    def _key(self, point: dict[str, Any]) -> tuple[str, int]:
        return point["method"], point["target"]


def main() -> None:
    """Convert, measure, publish."""
    options = arguments()
    source, calibration = SourceOptions(options.model), CalibrationOptions(source=options.calibration)
    checkpoint = open_checkpoint(options.model)
    whole = total_parameters(checkpoint)
    targets = options.parameters or [int(keep * whole) for keep in options.keep]
    setting = setting_of(options, calibration, whole)
    results = Results(options.results, setting, options.limit)
    wanted = ["fidelity", *(["tasks"] if options.tasks else []), *(["windows"] if options.windows else [])]
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        missing = {
            method: [t for t in sizes_of(method, targets) if any(not results.has(method, t, kind) for kind in wanted)]
            for method in options.methods
        }
        missing = {method: sizes for method, sizes in missing.items() if sizes}
        if missing:
            bench = Bench(Path(folder), source, options, wanted)
            for point in bench.points(missing, checkpoint, calibration):
                results.add({**results.points.get((point["method"], point["target"]), {}), **point})
                print(summary(point), file=sys.stderr)
    if options.publish:
        report(results, setting, options)


def setting_of(options: argparse.Namespace, calibration: CalibrationOptions, whole: int) -> dict[str, Any]:
    """Return what the numbers depend on: points of another setting are not comparable."""
    return {
        "calibration": f"{calibration.sequences} × {calibration.tokens_per_sequence} tokens of "
        f"{Path(options.calibration).name}",
        "text": f"{options.text.name}, {options.max_tokens // options.window} windows of {options.window} tokens",
        "original": whole,
    }


class Bench:
    """The original and what is measured on it."""

    def __init__(self, folder: Path, source: SourceOptions, options: argparse.Namespace, wanted: list[str]) -> None:
        self._folder, self._options, self._wanted = folder, options, wanted
        export(source, folder / ORIGINAL)
        self._artifact = Artifact.open(folder / ORIGINAL)
        self._text = options.text.read_text(encoding="utf-8")
        windows = text_windows(self._artifact, self._text, options.window, options.max_tokens)
        self._windows, self._recorded = windows, Recorded(self._session(folder / ORIGINAL), windows, folder / "logits")

    def points(
        self, missing: dict[str, list[int]], checkpoint: Checkpoint, calibration: CalibrationOptions
    ) -> Iterator[dict[str, Any]]:
        """Yield the numbers of some methods at some sizes; the original is run once for all of them.

        `auto` is calibrated by itself, on its own text: half of it is the model's.
        """
        if ORIGINAL in missing:
            found = self.evaluate(self._folder / ORIGINAL)
            yield {"method": ORIGINAL, "target": 0, "parameters": total_parameters(checkpoint), **found}
        own = ({"auto", SEARCH, SHARED}, {GIVEN})
        rest = set(missing) - {ORIGINAL}.union(*own)
        for methods in filter(None, ([m for m in missing if m in group] for group in (*own, rest))):
            scratch = Path(tempfile.mkdtemp(dir=self._folder))
            wanted: dict[tuple[str, int], ConvertOptions] = {}
            for target in dict.fromkeys(t for method in methods for t in missing[method]):
                for method in (method for method in methods if target in missing[method]):
                    try:
                        wanted[method, target] = self._options_for(checkpoint, method, target, calibration)
                    except InputError as error:
                        yield {"method": method, "target": target, "reason": str(error)}
            start = time.perf_counter()
            asked = list(wanted.values())
            prepared = sampled(prepare(checkpoint, asked[0]), asked[0], silent)
            measured, executor = measure(prepared, asked, scratch, silent), LocalExecutor(len(os.sched_getaffinity(0)))
            passes = time.perf_counter() - start
            for (method, target), options in wanted.items():
                start = time.perf_counter()
                try:
                    plan = decide(prepared, measured, options, executor, silent)
                except InputError as error:
                    yield {"method": method, "target": target, "reason": str(error)}
                    continue
                out = self._folder / f"{method}-{target}"
                out.mkdir()
                produce(out, prepared, measured, plan, options, executor, None, silent)
                seconds = [passes, time.perf_counter() - start]
                head = {"method": method, "target": target, "parameters": plan.parameters_after, "seconds": seconds}
                head["max_kl"] = options.max_kl
                yield {**head, **self.evaluate(out)}
                shutil.rmtree(out)
            shutil.rmtree(scratch)

    def _options_for(
        self, checkpoint: Checkpoint, method: str, target: int, calibration: CalibrationOptions
    ) -> ConvertOptions:
        if method == SEARCH:
            return ConvertOptions.for_method("auto", max_kl=self._options.max_kl, calibration=calibration)
        if method == GIVEN:
            return options_for_size(checkpoint, "auto", target, calibration=calibration, self_text=0.0)
        if method == SHARED:
            return options_for_size(checkpoint, "auto", target, calibration=calibration, share=True)
        return options_for_size(checkpoint, method, target, calibration=calibration)

    def evaluate(self, path: Path) -> dict[str, Any]:
        """Measure an artifact."""
        session = self._session(path)
        found: dict[str, Any] = {"fidelity": asdict(exact_fidelity(session, self._recorded, self._windows))}
        if found["fidelity"]["perplexity_compressed"] > self._options.limit:
            return found
        scorer = tasks.Scorer.load(path) if {"tasks", "windows"} & set(self._wanted) else None
        if scorer and "tasks" in self._wanted:
            prefix = int(self._artifact.config["bos_token_id"])
            blimp, piqa = self._options.tasks
            pairs = tasks.blimp(scorer, session.tokenizer, blimp, prefix, self._options.pairs)
            asked = tasks.piqa_questions(piqa)
            questions = tasks.piqa(asked, tasks.piqa_scores(scorer, session.tokenizer, asked, [prefix]))
            found["tasks"] = {"BLiMP": tasks.accuracy(pairs), "PIQA": tasks.accuracy(questions)}
        if scorer and "windows" in self._wanted:
            found["bfloat16"] = tasks.perplexity(scorer, self._windows)
            found["windows"] = {
                name: tasks.perplexity(scorer, text_windows(self._artifact, self._text, size, tokens))
                for name, size, tokens in self._options.windows
            }
        return found

    @staticmethod
    def _session(path: Path) -> Session:
        return load(path, graph="portable")  # the graph that `verify` compares


def sizes_of(method: str, targets: list[int]) -> list[int]:
    """Return the sizes at which a method is measured; 0 where it has one of its own."""
    return [0] if method in (ORIGINAL, SEARCH) else targets


def summary(point: dict[str, Any]) -> str:
    """Return a point in one line."""
    if "reason" in point:
        return f"{point['method']} {point['target']}: {point['reason']}"
    found = point["fidelity"]
    rest = {name: value for name, value in point.items() if name in ("seconds", "tasks", "windows")}
    return (
        f"{point['method']} {point['parameters']}: KL {found['kl']['mean']:.4f}, "
        f"perplexity {found['perplexity_compressed']:.2f} {rest}"
    )


def report(results: Results, setting: dict[str, Any], options: argparse.Namespace) -> None:
    """Write the section and the plot."""
    points = [point for point in results.points.values() if "fidelity" in point]
    shown = [point for point in points if point["method"] not in (ORIGINAL, SEARCH)]
    counts = Counter(point["target"] for point in shown)
    targets = sorted((t for t, count in counts.items() if count > 2), reverse=True)
    order = [method for method in METHODS if any(point["method"] == method for point in shown)]
    found = {(point["method"], point["target"]): point for point in results.points.values()}

    def rows(cell: Any) -> list[list[str]]:
        def shown(point: dict[str, Any] | None) -> str:
            return cell(point["fidelity"]) if point and "fidelity" in point else "–"

        return [[f"`{method}`", *(shown(found.get((method, t))) for t in targets)] for method in order]

    header = ["method", *(f"{t / setting['original']:.3f}: {t / 1e6:.2f} M" for t in targets)]
    divergences = table(header, rows(lambda f: f"{f['kl']['mean']:.4f} ± {f['kl']['standard_error']:.4f}"))
    perplexities = table(header, rows(lambda f: f"{_short(f['perplexity_compressed'])} ({f['top1']:.3f})"))
    dense = points[0]["fidelity"]["perplexity_original"]
    draw([(m, [found[m, t] for t in targets if "fidelity" in found.get((m, t), {})]) for m in order])
    publish("choices", _choices(found, targets, setting, dense), ROOT / "README.md")
    publish(
        "quality",
        f"""{MODEL_NAME}, {setting["original"]:,} parameters, float32. Columns: share of all parameters that is kept,
embedding included. `auto` and `soco` take the size itself; any other method the density of all seven linears
(`neurons`: of the three of the MLP) of every layer that gives the same size; `modegpt` rounds down to whole dimensions
of every head;
–: not measured. Calibration: {setting["calibration"]}; half of the
sequences of `auto` are written by the model from a first token of that text.
Text: {setting["text"]}; the original's perplexity there is {dense:.2f}. {machine()}.

KL(original ‖ compressed), nats per token, exact over the whole vocabulary, ± standard error over windows:

{divergences}

Perplexity, and in brackets the share of positions where both models' first choice is the same:

{perplexities}

![KL against parameters]({_PLOT})

{_others(points, targets, setting)}

{_thorough(points, setting, options.limit)}

Made by `python benchmarks/quality.py --text {options.text.name} --calibration {Path(options.calibration).name}
--methods original {" ".join(order)} --publish`, and for the last table `--tasks blimp piqa --pairs 10
--windows 1024 512:24576 128:24576`.
""",
    )


_CHOICES = {
    "auto": ("the best model for its bytes", "`--keep 0.9` (`--method auto`)"),
    "neurons": ("smaller dense layers, no new operators", "`--method neurons`"),
    "svd-llm": ("two plain products for each matrix", "`--method svd-llm`"),
    "row-id": ("rows that are the original's, bit for bit", "`--method row-id`"),
    "curing": ("the paper's C·U·R, to compare with", "`--method curing`"),
}


def _choices(
    found: dict[tuple[str, int], dict[str, Any]], targets: list[int], setting: dict[str, Any], dense: float
) -> str:
    """Return README's table: which method for what."""

    def cell(method: str, target: int) -> str:
        point = found.get((method, target), {}).get("fidelity")
        return f"{point['kl']['mean']:.3f}, {_short(point['perplexity_compressed'])}" if point else "–"

    shown = [t for t in targets if t / setting["original"] > 0.75]
    rows = [[*words, *(cell(method, t) for t in shown)] for method, words in _CHOICES.items()]
    header = ["you want", "take", *(f"{t / setting['original']:.0%} of all parameters" for t in shown)]
    search = found.get((SEARCH, 0))
    asked = (
        f" `--max-kl {search['max_kl']}` finds {search['parameters'] / setting['original']:.1%} of the parameters; "
        f"its KL on this text, which the search never sees, is {search['fidelity']['kl']['mean']:.3f}."
        if search
        else ""
    )
    return f"""Which method for what: KL to the original, nats per token, and perplexity; the original's is {dense:.2f}.
{MODEL_NAME}, float32, {setting["text"]}, calibrated on {setting["calibration"]}. Nothing is trained.

{table(header, rows)}

`auto` spreads the budget by itself; the others keep one density everywhere.{asked}{_long(found, shown)}"""


def _long(found: dict[tuple[str, int], dict[str, Any]], targets: list[int]) -> str:
    """Say what `auto` reaches on the whole text, where that was measured."""
    points = [found.get(key, {}).get("windows") or {} for key in ((ORIGINAL, 0), *(("auto", t) for t in targets))]
    name = next((name for name in points[0] if name.endswith("whole text")), "")
    if not name or any(name not in point for point in points):
        return ""
    original, *rest = (f"{point[name]:.2f}" for point in points)
    return (
        f" Perplexity of `auto` on {name.replace(', ', ', the ')}: {', '.join(rest)}; the original's is {original}. "
        "BLiMP, PIQA and the other methods: [docs/benchmarks.md](docs/benchmarks.md)."
    )


def _others(points: list[dict[str, Any]], targets: list[int], setting: dict[str, Any]) -> str:
    """List the sizes that `auto` alone was measured at, and the one that it found by itself."""
    names = {"auto": "`--target-params {0}`", SEARCH: "`--max-kl {1}`", GIVEN: "`--target-params {0} --self-text 0`"}
    chosen = [p for p in points if p["method"] in names and p["target"] not in targets]
    rows = [
        [
            names[point["method"]].format(point["target"], point.get("max_kl")),
            f"{point['parameters']:,}",
            f"{point['parameters'] / setting['original']:.3f}",
            f"{point['fidelity']['kl']['mean']:.4f} ± {point['fidelity']['kl']['standard_error']:.4f}",
            f"{point['fidelity']['perplexity_compressed']:.2f}",
            f"{point['fidelity']['top1']:.3f}",
        ]
        for point in sorted(chosen, key=lambda point: -point["parameters"])
    ]
    header = ["`auto`", "parameters", "kept", "KL", "perplexity", "same first choice"]
    return f"`auto` at other sizes, and at the one that it finds for a divergence:\n\n{table(header, rows)}"


def _thorough(points: list[dict[str, Any]], setting: dict[str, Any], limit: float) -> str:
    chosen = [point for point in points if point.get("tasks") and point.get("windows")]
    chosen = [point for point in chosen if point["fidelity"]["perplexity_compressed"] <= limit]
    if all(point["method"] == ORIGINAL for point in chosen):
        return ""
    chosen.sort(key=lambda point: ([ORIGINAL, *METHODS].index(point["method"]), -point["parameters"]))
    names, sizes = list(chosen[0]["tasks"]), list(chosen[0]["windows"])
    cells = [
        [
            f"`{point['method']}`" if point["method"] != ORIGINAL else ORIGINAL,
            f"{point['parameters'] / setting['original']:.3f}",
            *(_short(point["windows"][size]) for size in sizes),
            *(f"{point['tasks'][name]['share']:.3f} ± {point['tasks'][name]['error']:.3f}" for name in names),
        ]
        for point in chosen
    ]
    header = ["method", "kept", *(f"perplexity, {size}" for size in sizes), *names]
    counts = " and ".join(f"{chosen[0]['tasks'][name]['count']:,} pairs of {name}" for name in names)
    apart = max(abs(point["bfloat16"] / point["fidelity"]["perplexity_compressed"] - 1) for point in chosen)
    return f"""Perplexity by windows of the same text; accuracy ± standard error on {counts}. These are of the
artifacts in transformers, with bfloat16 products: on the windows above that changes a perplexity by {apart:.2%} at
most. None of it was measured on models whose perplexity above is over {limit:g}.

{table(header, cells)}"""


def draw(lines: list[tuple[str, list[dict[str, Any]]]]) -> None:
    """Plot divergence against size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for method, points in lines:
        x, y = [p["parameters"] / 1e6 for p in points], [p["fidelity"]["kl"]["mean"] for p in points]
        axes.plot(x, y, marker="o", label=method, linewidth=2.5 if method == "auto" else 1.2)
    axes.set_yscale("log")
    axes.set_xlabel("parameters, millions (float32: 4 MB each million)")
    axes.set_ylabel("mean KL(original ‖ compressed), nats per token")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(ROOT / "docs" / _PLOT, dpi=110)


def _short(number: float) -> str:
    return f"{number:.2f}" if number < 1000 else f"{number:.1e}"


def window(text: str) -> tuple[str, int, int]:
    """Read `1024` or `512:24576`: a name for the table, the window's tokens, and how many of the text's."""
    size, _, tokens = text.partition(":")
    name = f"windows of {size}, " + (f"first {int(tokens):,} tokens" if tokens else "whole text")
    return name, int(size), int(tokens or 10**9)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--text", type=Path, required=True, help="evaluation text, UTF-8")
    parser.add_argument("--calibration", required=True, help="another text than the evaluation's")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.95, 0.9, 0.8, 0.7])
    parser.add_argument("--parameters", type=int, nargs="+", help="sizes of the whole model, instead of --keep")
    parser.add_argument("--methods", nargs="*", default=[*METHODS], choices=[ORIGINAL, *METHODS])
    parser.add_argument("--max-kl", type=float, default=0.1, help=f"of {SEARCH}")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=24 * 512)
    parser.add_argument("--tasks", type=Path, nargs=2, default=[], metavar=("BLIMP", "PIQA"), help="their folders")
    parser.add_argument("--pairs", type=int, help="pairs of each of BLiMP's phenomena; default: all")
    parser.add_argument(
        "--windows", type=window, nargs="+", default=[], metavar="SIZE[:TOKENS]",
        help="windows for perplexity, over the whole text or its first tokens",
    )  # fmt: skip
    parser.add_argument(
        "--limit", type=float, default=100.0, help="perplexity above which a model gets no --tasks and no --windows"
    )
    parser.add_argument("--results", type=Path, default=ROOT / ".cache" / "benchmarks" / "quality.jsonl")
    parser.add_argument("--scratch", type=Path, help="folder for temporary files; the original's logits take gigabytes")
    parser.add_argument("--publish", action="store_true", help="write docs/benchmarks.md and the plot from --results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
