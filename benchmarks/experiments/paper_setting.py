"""Compares quality at equal parameters: CURing as published, each change to it, and the other forms.

The C·U·R rows keep the same layers, targets and ranks, so their parameter counts are equal (the script checks it).
The other forms get the density that gives the same model size, within 0.1%, over the same layers and targets.
Fidelity is exact: the original runs through its own exported graph on the same text.

Decided: `--rank` alone reproduces the paper's setting for comparison and is no recommendation, because the other forms
lose much less at the same size.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import Result, torch_threads
from benchmarks.fidelity import Yardstick, figures, text_arguments, text_setting
from curconvert import CalibrationOptions, ConvertOptions, SourceOptions, convert
from curconvert.base.plan import Plan
from curconvert_runtime import load

CUR_ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "`curing`: DEIM on |W|∘a, plain U": ("curing", {}),
    "`curing` with the full-H link": ("curing", {"link": "full"}),
    "`cur`": ("cur", {}),
}
OTHER_METHODS = ("svd-llm", "row-id", "pifa")


def main() -> None:
    """Convert and measure each row."""
    parser = text_arguments("paper_setting", __doc__)
    parser.add_argument("--rank", type=int, default=128)
    given = parser.parse_args()
    calibration = CalibrationOptions(source=given.calibration)
    setting = text_setting(given, calibration) | {
        "rank": given.rank,
        "matrices": "q/k/gate, layers by angular distance",
    }
    result = Result(given.out, setting, torch_threads())
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        yardstick = Yardstick(Path(folder), given)

        def measure(label: str, chosen: ConvertOptions) -> Plan:
            start = time.perf_counter()
            made = convert(SourceOptions(str(given.model)), Path(folder) / "out", chosen, overwrite=True)
            seconds = time.perf_counter() - start
            assert made.plan is not None
            found = figures(yardstick.fidelity(load(made.path, graph="portable")))
            row = {"parameters": made.plan.parameters_after, **found, "seconds": seconds}
            result.add("rows", row, method=label)
            return made.plan

        plans = []
        for label, (method, changes) in CUR_ROWS.items():
            chosen = ConvertOptions.for_method(method, rank=given.rank, calibration=calibration, **changes)
            plans.append(measure(label, chosen))
        if len({plan.parameters_after for plan in plans}) != 1:
            raise SystemExit(f"parameter counts differ: {[plan.parameters_after for plan in plans]}")
        plan = plans[0]
        selected = sum(m.parameters_before for m in plan.matrices if m.reason != "not selected")
        density = 1 - (plan.parameters_before - plan.parameters_after) / selected
        for method in OTHER_METHODS:
            other = measure(f"`{method}`", ConvertOptions.for_method(method, density=density, calibration=calibration))
            if not 0.999 <= other.parameters_after / plan.parameters_after <= 1:
                raise SystemExit(f"{method}: {other.parameters_after} parameters, expected {plan.parameters_after}")


if __name__ == "__main__":
    main()
