"""Quality at equal parameters: CURing as published, what each change to it brings, and the other forms.

The C·U·R rows keep the same layers, targets and ranks, so their parameter counts are equal (the script checks it).
The other forms get the density that makes the whole model as large, within 0.1 %, over the same layers and targets.
Fidelity is exact: the original runs through its own exported graph on the same text.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import FIDELITY, MODEL, MODEL_NAME, fidelity_cells, machine, publish, table

from curconvert import CalibrationOptions, ConvertOptions, SourceOptions, convert, export
from curconvert.base.plan import Plan
from curconvert_runtime import VerifyOptions, verify
from curconvert_runtime.checks.metrics import Fidelity

CUR_ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "`curing`: DEIM on \\|W\\|∘a, plain U": ("curing", {}),
    "`curing` with the full-H link": ("curing", {"link": "full"}),
    "`cur`": ("cur", {}),
}
OTHER_METHODS = ("svd-llm", "row-id", "pifa")

HEADER = ["method", "parameters", *FIDELITY, "conversion, s"]


def main() -> None:
    """Convert, measure, publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--text", type=Path, required=True, help="evaluation text, UTF-8; not the calibration's")
    parser.add_argument("--calibration", default="builtin")
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=24 * 512)
    options = parser.parse_args()
    source = SourceOptions(options.model)
    calibration = CalibrationOptions(source=options.calibration)
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder) / "original"
        export(source, original)
        gates = VerifyOptions(against=original, text=options.text, window=options.window, max_tokens=options.max_tokens)

        def measure(label: str, chosen: ConvertOptions) -> tuple[list[str], Plan, Fidelity]:
            start = time.perf_counter()
            result = convert(source, Path(folder) / "out", chosen, overwrite=True)
            seconds = time.perf_counter() - start
            report = verify(result.path, gates)
            report.raise_for_failures()
            assert report.fidelity is not None
            assert result.plan is not None
            f = report.fidelity
            row = [
                label,
                f"{result.plan.parameters_after:,}",
                *fidelity_cells(f),
                f"{seconds:.0f}",
            ]
            print(*row, file=sys.stderr)
            return row, result.plan, f

        rows, plans = [], []
        for label, (method, changes) in CUR_ROWS.items():
            chosen = ConvertOptions.for_method(method, rank=options.rank, calibration=calibration, **changes)
            row, plan, fidelity = measure(label, chosen)
            rows.append(row)
            plans.append(plan)
        if len({plan.parameters_after for plan in plans}) != 1:
            raise SystemExit(f"parameter counts differ: {[plan.parameters_after for plan in plans]}")
        selected = sum(m.parameters_before for m in plan.matrices if m.reason != "not selected")
        density = 1 - (plan.parameters_before - plan.parameters_after) / selected
        for method in OTHER_METHODS:
            chosen = ConvertOptions.for_method(method, density=density, calibration=calibration)
            row, other, _ = measure(f"`{method}`", chosen)
            rows.append(row)
            if not 0.999 <= other.parameters_after / plan.parameters_after <= 1:
                raise SystemExit(f"{method}: {other.parameters_after} parameters, expected {plan.parameters_after}")
    publish(
        "paper-setting",
        f"""{MODEL_NAME}, {plan.parameters_before:,} parameters, float32; q/k/gate of {plan.layer_total} layers chosen
by angular distance. C·U·R: rank {options.rank}, matrices that would not shrink by 5 % stay dense. Other forms: density
{density:.4f} of every selected matrix, the same size in all; not sequential.
Calibration: {calibration.sequences} × {calibration.tokens_per_sequence} tokens of {Path(options.calibration).name}.
Text: {options.text.name}, windows of {options.window} tokens, {fidelity.tokens} positions. KL in nats, exact over the
whole vocabulary. {machine()}.

{table(HEADER, rows)}

Made by `python benchmarks/paper_setting.py --text {options.text.name}`.
""",
    )


if __name__ == "__main__":
    main()
