"""Compares conversions with and without `--sequential`, with the same matrices, ranks and calibration text.

KL is exact: the original runs through its own exported graph on the same text. Differences are paired by window of the
text, with the standard error of their mean. Points in the results are not measured again.

Decided: `--sequential` is off by default, because it lowers the divergence but a conversion of all linears then takes
two to three times as long.
"""

from __future__ import annotations

import tempfile
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Result, torch_threads
from benchmarks.fidelity import Yardstick, text_arguments, text_setting
from curconvert import CalibrationOptions, ConvertOptions, SourceOptions, convert
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.linears import total_parameters
from curconvert.methods.core.options import options_for_size
from curconvert_runtime import load
from curconvert_runtime.checks.fidelity import exact_fidelity
from curconvert_runtime.serve.session import Session

PAPER_DENSITY = 0.4228
"""Density of q/k/gate in nine layers with the size of C·U·R at the paper's rank 128, as `paper_setting.py` finds it."""
PAPER = "q/k/gate of 9 layers"
WHOLE = "all linears, 0.9 of all parameters"
RULES = ("plain", "`--sequential`")


def main() -> None:
    """Convert and measure each point."""
    given = arguments()
    calibration = CalibrationOptions(source=given.calibration, sequences=given.sequences)
    checkpoint = open_checkpoint(str(given.model))

    def chosen(where: str, method: str, sequential: bool) -> ConvertOptions:
        values = {"calibration": calibration, "sequential": sequential}
        if where == WHOLE:
            return options_for_size(checkpoint, method, int(0.9 * total_parameters(checkpoint)), **values)
        size = {"rank": 128} if method == "cur" else {"density": PAPER_DENSITY}
        return ConvertOptions.for_method(method, **size, **values)

    result = Result(given.out, text_setting(given, calibration), torch_threads())
    cases = [(PAPER, method) for method in given.paper] + [(WHOLE, method) for method in given.whole]
    with tempfile.TemporaryDirectory(dir=given.scratch) as temporary:
        folder = Path(temporary)
        yardstick: Yardstick | None = None
        for where, method in cases:
            for rule in RULES:
                key = {"matrices": where, "method": method, "rule": rule}
                if result.find("rows", **key):
                    continue
                yardstick = yardstick or Yardstick(folder, given)
                start = time.perf_counter()
                asked = chosen(where, method, rule != RULES[0])
                source = SourceOptions(str(given.model))
                made = convert(source, folder / "out", asked, overwrite=True, verification=None)
                seconds = time.perf_counter() - start
                assert made.plan is not None
                found = measured(load(folder / "out", graph="portable"), yardstick)
                plain = result.find("rows", **{**key, "rule": RULES[0]})
                row = {"parameters": made.plan.parameters_after, "seconds": seconds, **found}
                result.add("rows", row | (paired(found, plain) if plain else {}), **key)


def measured(session: Session, yardstick: Yardstick) -> dict[str, Any]:
    """Return the mean KL of each window and of all windows, and the perplexity."""
    original: Any = yardstick.recorded  # it has `logits` like a model
    found = [exact_fidelity(session, original, row[None]) for row in yardstick.windows]
    perplexity = np.exp(np.mean([np.log(f.perplexity_compressed) for f in found]))  # all windows have the same length
    windows = [f.kl.mean for f in found]
    return {"windows": windows, "kl": float(np.mean(windows)), "perplexity": float(perplexity)}


def paired(found: dict[str, Any], plain: dict[str, Any]) -> dict[str, float]:
    """Return the mean difference over windows, and its standard error."""
    differences = np.array(found["windows"]) - np.array(plain["windows"])
    error = differences.std(ddof=1) / np.sqrt(len(differences))
    return {"difference": float(differences.mean()), "difference_error": float(error)}


def arguments() -> Namespace:
    """Read the command line."""
    parser = text_arguments("sequential", __doc__)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--paper", nargs="*", default=["cur", "pifa"], help=f"methods on {PAPER}")
    parser.add_argument("--whole", nargs="*", default=["svd-llm", "row-id", "pifa"], help=f"methods on {WHOLE}")
    return parser.parse_args()


if __name__ == "__main__":
    main()
