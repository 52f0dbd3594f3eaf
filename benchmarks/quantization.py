"""What quantisation costs: round to nearest beside error feedback (GPTQ), for the dense model and compressed ones.

The original runs once, on the calibration text; every artifact is then made from the same statistics. KL is exact,
against the original's float32 graph on another text, and measured on the fused graph (MatMulNBits).

Each result is appended to `--results` at once; what stands there is not measured again. With `--publish` the table is
written from the file.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common import MODEL, MODEL_NAME, ROOT, machine, publish, table
from curconvert.jobs.stages import decide, measure, prepare, produce
from quality import Recorded, Results

from curconvert import CalibrationOptions, ConvertOptions, SourceOptions, export
from curconvert.base.progress import silent
from curconvert.checkpoint import open_checkpoint
from curconvert.execution.executor import executing
from curconvert.options.execution import ExecutionOptions
from curconvert.options.quantization import Quantization
from curconvert.options.settings import LINEARS
from curconvert.quantization.tensors import UNQUANTISED, quantised_tables
from curconvert_runtime import load
from curconvert_runtime.checks.fidelity import exact_fidelity, text_windows
from curconvert_runtime.format.artifact import Artifact

DENSITY = 0.8
"""Of `pifa`: each linear of every layer keeps this share of its numbers."""


@dataclass(frozen=True)
class Point:
    """One artifact.

    Attributes:
        model: `dense`, `pifa`, or `cur` with its defaults.
        quantization: None leaves it float.
    """

    model: str
    quantization: Quantization | None

    @property
    def label(self) -> str:
        """A name for results."""
        asked = self.quantization
        if asked is None:
            return f"{self.model} float32"
        if asked.mixed:
            return f"{self.model} {asked.bits_per_weight:g} bits {asked.rounding}"
        zeros = " asymmetric" if asked.asymmetric else ""
        return f"{self.model} {asked.type} {asked.layout.block_size}{zeros} {asked.rounding}"


def _points() -> Iterator[Point]:
    layouts = [("int4", 64, False), ("int8", 32, False), ("int4", 128, False)]
    for kind, size, zeros in layouts:
        for rounding in ("gptq", "nearest"):
            yield Point("dense", Quantization(kind, size, zeros, rounding))
    yield Point("pifa", None)
    for kind, size, zeros in layouts[:2]:
        for rounding in ("gptq", "nearest"):
            yield Point("pifa", Quantization(kind, size, zeros, rounding))
    yield Point("cur", None)
    for kind, size, zeros in layouts[:2]:
        for rounding in ("gptq", "nearest"):
            yield Point("cur", Quantization(kind, size, zeros, rounding))
    for rounding in ("gptq", "nearest"):
        yield Point("dense", Quantization("int4", 64, True, rounding))
    for model in ("dense", "pifa"):
        for bits in (5.5, 6.5):
            yield Point(model, Quantization("mixed", bits_per_weight=bits))


POINTS = tuple(_points())
SHORT = ("dense int8 32 gptq", "dense int8 32 nearest", "dense int4 64 gptq", "dense int4 64 nearest")
"""What the README shows."""


def main() -> None:
    """Convert, measure, publish."""
    given = arguments()
    calibration = CalibrationOptions(source=given.calibration)
    setting = {
        "calibration": f"{calibration.sequences} × {calibration.tokens_per_sequence} tokens of "
        f"{Path(given.calibration).name}",
        "text": f"{given.text.name}, {given.windows} windows of {given.window} tokens",
    }
    results = Results(given.results, setting)
    missing = [p for p in POINTS if p.label in given.points and not results.has(p.label, 0, "fidelity")]
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        for found in measured_points(missing, Path(folder), calibration, given) if missing else ():
            results.add(found)
            fidelity = found["fidelity"]
            print(
                f"{found['method']}: KL {fidelity['kl']['mean']:.5f}, perplexity "
                f"{fidelity['perplexity_compressed']:.3f}, {found['bytes'] / 1e6:.1f} MB, {found['seconds']:.0f} s",
                file=sys.stderr,
            )
    if given.publish:
        report(results, setting)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--calibration", default="builtin", help="calibration text")
    parser.add_argument("--text", type=Path, required=True, help="evaluation text, such as WikiText-2's")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--results", type=Path, default=ROOT / ".cache" / "benchmarks" / "quantization.jsonl")
    labels = [point.label for point in POINTS]
    parser.add_argument("--points", nargs="*", choices=labels, default=labels, metavar="POINT")
    parser.add_argument("--scratch", type=Path, help="folder for artifacts; the system's temporary one by default")
    parser.add_argument("--publish", action="store_true")
    return parser.parse_args()


def measured_points(
    points: list[Point], folder: Path, calibration: CalibrationOptions, given: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Yield the numbers of each point; the original is calibrated on once for all of them."""
    source, original = SourceOptions(given.model), folder / "original"
    export(source, original, dtype="float32")
    text = given.text.read_text(encoding="utf-8")
    windows = text_windows(Artifact.open(original), text, given.window, given.window * given.windows)
    recorded = Recorded(load(original, graph="portable"), windows, folder / "logits")
    checkpoint = open_checkpoint(given.model)
    common = {"calibration": calibration, "dtype": "float32"}
    sizes = {"dense": {}, "pifa": {"density": DENSITY, "layers": "all", "targets": LINEARS}, "cur": {}}
    scratch = folder / "scratch"
    scratch.mkdir()
    wanted = {
        model: ConvertOptions.for_method(model, quantization=Quantization("int4"), **size, **common)
        for model, size in sizes.items()
    }
    prepared = prepare(checkpoint, wanted["dense"])
    mixed = [
        replace(wanted[p.model], quantization=p.quantization) for p in points if p.quantization and p.quantization.mixed
    ]
    measured = measure(prepared, [*wanted.values(), *mixed], scratch, silent)
    for point in points:
        start = time.perf_counter()
        asked = point.quantization
        # The options of a float point are those of a quantised one but for that.
        options = replace(wanted[point.model], quantization=asked)
        head = measured.original.head if asked and asked.uses_statistics else None
        tables = quantised_tables(checkpoint, asked, head) if asked and not asked.mixed else UNQUANTISED
        out = folder / "artifact"
        out.mkdir()
        with executing(ExecutionOptions()) as executor:
            own = replace(measured, tables=tables)
            plan = decide(prepared, own, options, executor, silent)
            produce(out, prepared, own, plan, options, executor, None, silent)
        seconds = time.perf_counter() - start
        fidelity = exact_fidelity(load(out, graph="fused"), recorded, windows)
        size = (out / "model.safetensors").stat().st_size
        yield {
            "method": point.label, "target": 0, "parameters": plan.parameters_after, "bytes": size,
            "seconds": seconds, "fidelity": asdict(fidelity),
        }  # fmt: skip
        shutil.rmtree(out)


def report(results: Results, setting: dict[str, Any]) -> None:
    """Write the section."""
    rows = []
    for point in POINTS:
        found = results.points.get((point.label, 0))
        if found is None:
            continue
        fidelity = found["fidelity"]
        ratio = fidelity["perplexity_compressed"] / fidelity["perplexity_original"]
        rows.append([
            point.label, f"{found['bytes'] / 1e6:.1f}",
            f"{fidelity['kl']['mean']:.5f} ± {fidelity['kl']['standard_error']:.5f}", f"{fidelity['top1']:.4f}",
            f"{fidelity['perplexity_compressed']:.3f}", f"{ratio:.4f}",
        ])  # fmt: skip
    dense = next(iter(results.points.values()))["fidelity"]["perplexity_original"]
    publish(
        "quantization",
        f"""{MODEL_NAME}, calibrated on {setting["calibration"]}, measured on {setting["text"]}, on the fused graph
against the original's float32 one (perplexity {dense:.3f}). Everything but norms, biases and `pifa`'s index vectors is
quantised, embedding and head included; `N bits` is `--bits-per-weight N`. `pifa` keeps {DENSITY:.0%} of the numbers
of every linear, `cur` is the default conversion. The model's linears
were on a 4-bit grid in blocks of 32 before, so int4 in blocks of 32 would say nothing.
{machine()}.

{table(["artifact", "MB", "KL mean ± standard error", "top-1", "perplexity", "ratio"], rows)}

Made by `python benchmarks/quantization.py --text …`.
""",
    )
    points = results.points
    short = [
        [label, f"{found['bytes'] / 1e6:.1f}", f"{found['fidelity']['kl']['mean']:.4f}",
         f"{found['fidelity']['perplexity_compressed']:.2f}"]
        for label in SHORT
        if (found := points.get((label, 0)))
    ]  # fmt: skip
    publish(
        "quantization-short",
        f"""{MODEL_NAME} on {setting["text"]}; float32 has a perplexity of {dense:.2f}. More in
[docs/benchmarks.md](docs/benchmarks.md).

{table(["artifact", "MB", "KL to the original", "perplexity"], short)}
""",
        ROOT / "README.md",
    )


if __name__ == "__main__":
    main()
