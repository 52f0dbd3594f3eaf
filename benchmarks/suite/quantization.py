"""Measures the loss by quantization: round to nearest and error feedback (GPTQ), for dense and compressed models.

The original runs once on the calibration text, and all artifacts use the same statistics. KL is exact, against the
original's float32 graph on another text. It is measured on the fused graph (MatMulNBits).

Points in the results with the same setting are not measured again.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.common import Result, torch_threads
from benchmarks.fidelity import Yardstick, figures, text_arguments, text_setting
from curconvert import CalibrationOptions, ConvertOptions
from curconvert.base.progress import silent
from curconvert.checkpoint import open_checkpoint
from curconvert.execution.local import LocalExecutor
from curconvert.jobs.measure import measure
from curconvert.jobs.prepare import prepare
from curconvert.jobs.produce import produce
from curconvert.options.quantization import Quantization
from curconvert.options.targets import LINEARS
from curconvert.quantization.tensors import UNQUANTIZED, quantized_tables
from curconvert_runtime import load

DENSITY = 0.8
"""Density for `pifa`: each linear of every layer keeps this share of its numbers."""


@dataclass(frozen=True)
class Point:
    """One artifact.

    Attributes:
        model: `dense` or `pifa`.
        quantization: The quantization; None for float weights.
    """

    model: str
    quantization: Quantization | None

    @property
    def label(self) -> str:
        """Name of the point in results."""
        asked = self.quantization
        if asked is None:
            return f"{self.model} float32"
        if asked.mixed:
            return f"{self.model} {asked.bits_per_weight:g} bits {asked.rounding}"
        return f"{self.model} {asked.type} {asked.layout.block_size} {asked.rounding}"


def _points() -> Iterator[Point]:
    for kind, size in (("int4", 64), ("int8", 32), ("int4", 128)):
        for rounding in ("gptq", "nearest"):
            yield Point("dense", Quantization(kind, size, rounding=rounding))
    yield Point("pifa", None)
    for kind, size, rounding in (("int4", 64, "gptq"), ("int4", 64, "nearest"), ("int8", 32, "gptq")):
        yield Point("pifa", Quantization(kind, size, rounding=rounding))
    for model, bits in (("dense", 5.5), ("dense", 6.5), ("pifa", 6.5)):
        yield Point(model, Quantization("mixed", bits_per_weight=bits))


POINTS = tuple(_points())


def main() -> None:
    """Convert and measure the points."""
    given = arguments()
    calibration = CalibrationOptions(source=given.calibration)
    setting = text_setting(given, calibration) | {
        "graph": "fused", "pifa": f"keeps {DENSITY:.0%} of the numbers of every linear"
    }  # fmt: skip
    result = Result(given.out, setting, torch_threads())
    missing = [p for p in POINTS if p.label in given.points and result.find("artifacts", artifact=p.label) is None]
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        for label, row in measured_points(missing, Path(folder), calibration, given) if missing else ():
            result.add("artifacts", row, artifact=label)


def arguments() -> Namespace:
    """Read the command line."""
    parser = text_arguments("quantization", __doc__)
    labels = [point.label for point in POINTS]
    parser.add_argument("--points", nargs="*", choices=labels, default=labels, metavar="POINT")
    return parser.parse_args()


def measured_points(
    points: list[Point], folder: Path, calibration: CalibrationOptions, given: Namespace
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the figures of each point; the original runs once for all of them."""
    yardstick = Yardstick(folder, given)
    checkpoint = open_checkpoint(str(given.model))
    common = {"calibration": calibration, "dtype": "float32"}
    sizes = {"dense": {}, "pifa": {"density": DENSITY, "layers": "all", "targets": LINEARS}}
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
    executor = LocalExecutor(len(os.sched_getaffinity(0)))
    context = prepared.context(wanted["dense"], scratch, executor, silent)
    measured = measure(context, [*wanted.values(), *mixed])
    for point in points:
        start = time.perf_counter()
        asked = point.quantization
        # A float point has the options of a quantized one, except for `quantization`.
        options = replace(wanted[point.model], quantization=asked)
        head = measured.original.head if asked and asked.uses_statistics else None
        tables = quantized_tables(checkpoint, asked, head) if asked and not asked.mixed else UNQUANTIZED
        out = folder / "artifact"
        out.mkdir()
        own, through = replace(measured, tables=tables), replace(context, settings=options)
        plan = options.method.decide(through, own)
        produce(out, through, prepared.companions, own, plan, options, None)
        seconds = time.perf_counter() - start
        found = figures(yardstick.fidelity(load(out, graph="fused")))
        size = (out / "model.safetensors").stat().st_size
        ratio = found["perplexity"] / found["perplexity_original"]
        yield (
            point.label,
            {"bytes": size, "parameters": plan.parameters_after, "seconds": seconds, "ratio": ratio, **found},
        )
        shutil.rmtree(out)


if __name__ == "__main__":
    main()
