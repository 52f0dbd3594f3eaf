"""Quality under one budget of parameters for the whole model: `auto` and every other method over all linears.

`auto` gets `--target-params`; the others get the density of all seven linears of every layer that gives the same size.
Fidelity is exact: the original runs through its own exported graph on the same text. The calibration text is another.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import FIDELITY, MODEL, MODEL_NAME, fidelity_cells, machine, publish, table

from curconvert import CalibrationOptions, SourceOptions, export
from curconvert.allocation.budgets import options_for_size
from curconvert.checkpoint import open_checkpoint
from curconvert.compress import silent
from curconvert.production import decide, measure, prepare, produce
from curconvert_runtime import VerifyOptions, verify

HEADER = ["method", "parameters", "kept", *FIDELITY, "seconds"]


def main() -> None:
    """Convert, measure, publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--text", type=Path, required=True, help="evaluation text, UTF-8")
    parser.add_argument("--calibration", required=True, help="another text than the evaluation's")
    parser.add_argument("--parameters", type=int, nargs="+", default=[127_300_000, 123_900_000, 113_300_000])
    parser.add_argument("--methods", nargs="+", default=["auto"])
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=24 * 512)
    options = parser.parse_args()
    source, calibration = SourceOptions(options.model), CalibrationOptions(source=options.calibration)
    checkpoint = open_checkpoint(options.model)
    rows = []
    fidelity: Any = None
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder) / "original"
        export(source, original)
        gates = VerifyOptions(against=original, text=options.text, window=options.window, max_tokens=options.max_tokens)
        for method in options.methods:
            any_size = options_for_size(checkpoint, method, options.parameters[0], calibration=calibration)
            prepared = prepare(checkpoint, any_size)
            scratch = Path(folder) / method
            scratch.mkdir()
            start = time.perf_counter()
            measured = measure(prepared, any_size, scratch, silent)
            shared = time.perf_counter() - start
            for target in options.parameters:
                chosen = options_for_size(checkpoint, method, target, calibration=calibration)
                out = Path(folder) / f"{method}-{target}"
                out.mkdir()
                start = time.perf_counter()
                plan = decide(prepared, measured, chosen, silent)
                produce(out, prepared, measured, plan, chosen, None, silent)
                seconds = time.perf_counter() - start
                report = verify(out, gates)
                report.raise_for_failures()
                fidelity = report.fidelity
                assert fidelity is not None
                rows.append([
                    f"`{method}`",
                    f"{plan.parameters_after:,}",
                    f"{plan.parameters_after / plan.parameters_before:.3f}",
                    *fidelity_cells(fidelity),
                    f"{shared:.0f} + {seconds:.0f}",
                ])  # fmt: skip
                print(*rows[-1], file=sys.stderr)
                shutil.rmtree(out)
    publish(
        "budgets",
        f"""{MODEL_NAME}, {plan.parameters_before:,} parameters, float32. `auto` takes `--target-params`; any other
method the density of all seven linears (`neurons`: of the three of the MLP) of every layer that gives the same size.
Calibration: {calibration.sequences} × {calibration.tokens_per_sequence} tokens of {Path(options.calibration).name}.
Text: {options.text.name}, windows of {options.window} tokens, {fidelity.tokens} positions. KL in nats, exact over the
whole vocabulary. Seconds: the passes over the original, made once for all sizes of a method, and the compression
without verification. {machine()}.

{table(HEADER, rows)}

Made by `python benchmarks/budgets.py --text {options.text.name} --calibration {Path(options.calibration).name}
--methods {" ".join(options.methods)} --parameters {" ".join(map(str, options.parameters))}`.
""",
    )


if __name__ == "__main__":
    main()
