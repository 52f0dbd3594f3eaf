"""Compares `resize` from one scored artifact with a new conversion of the same size.

It converts once with `--method auto --scored` and resizes the result to each smaller size. For each size it also
converts with `--method auto`. Sizes in the results are not measured again.

Decided: one scored artifact serves all smaller sizes, because its perplexities differ from those of fresh conversions
by a few hundredths of a percent.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from benchmarks.common import Result, torch_threads
from benchmarks.fidelity import Yardstick, figures, text_arguments, text_setting
from curconvert import CalibrationOptions, ConvertOptions, SourceOptions, convert
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.linears import total_parameters
from curconvert.jobs.resize import resize
from curconvert.methods.core.options import options_for_size
from curconvert.options.resize import ResizeOptions
from curconvert_runtime import load


def main() -> None:
    """Convert, resize and measure each size."""
    given = arguments()
    source, calibration = SourceOptions(str(given.model)), CalibrationOptions(source=given.calibration)
    checkpoint = open_checkpoint(str(given.model))
    whole = total_parameters(checkpoint)
    setting = text_setting(given, calibration) | {"scored": f"auto --keep {given.scored_keep:g} --scored"}
    result = Result(given.out, setting, torch_threads())
    wanted = [keep for keep in given.keep if result.find("sizes", kept=keep) is None]
    if not wanted:
        return
    with tempfile.TemporaryDirectory(dir=given.scratch) as temporary:
        folder = Path(temporary)
        yardstick, scored, out = Yardstick(folder, given), folder / "scored", folder / "out"
        asked = ConvertOptions.for_method("auto", keep=given.scored_keep, scored=True, calibration=calibration)
        start = time.perf_counter()
        convert(source, scored, asked)
        result.add("scored", {"seconds": time.perf_counter() - start, **components(scored)})
        for keep in wanted:
            target = int(keep * whole)
            start = time.perf_counter()
            resize(scored, out, ResizeOptions(target_parameters=target))
            row = measured(out, time.perf_counter() - start, yardstick)
            start = time.perf_counter()
            fresh_options = options_for_size(checkpoint, "auto", target, calibration=calibration)
            convert(source, out, fresh_options, verification=None)
            fresh = measured(out, time.perf_counter() - start, yardstick)
            ratio = row["perplexity"] / fresh["perplexity"]
            result.add("sizes", {**row, "fresh": fresh, "ratio": ratio}, kept=keep)


def measured(out: Path, seconds: float, yardstick: Yardstick) -> dict[str, Any]:
    """Return an artifact's figures, and delete it."""
    session = load(out, graph="portable")
    parameters = session.artifact.model["parameters_after"]
    found = figures(yardstick.fidelity(session))
    shutil.rmtree(out)
    return {"parameters": parameters, "seconds": seconds, **found}


def components(folder: Path) -> dict[str, int]:
    """Return the bytes of the components and of the weights."""
    names = {"components": "components*", "weights": "model*.safetensors"}
    return {name: sum(path.stat().st_size for path in folder.glob(files)) for name, files in names.items()}


def arguments() -> Namespace:
    """Read the command line."""
    parser = text_arguments("resize", __doc__)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.9, 0.8, 0.7])
    parser.add_argument("--scored-keep", type=float, default=0.95, help="size of the scored artifact")
    return parser.parse_args()


if __name__ == "__main__":
    main()
