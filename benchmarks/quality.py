"""Quality at equal parameters: CURing as published, and what each of our changes to it brings.

Every row keeps the same layers, targets and ranks, so the parameter counts are equal (the script checks it).
Fidelity is exact: the original runs through its own exported graph on the same text.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import MODEL, MODEL_NAME, machine, publish, table

from curconvert import CalibrationOptions, ConvertOptions, SourceOptions, convert, export
from curconvert_runtime import VerifyOptions, verify

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "`curing`: DEIM on \\|W\\|∘a, plain U": ("curing", {}),
    "`curing` with the full-H link": ("curing", {"link": "full"}),
    "`cur` with rows and columns by QR of W∘a": ("cur", {"importance": "activation"}),
    "`cur` with the sequential rule": ("cur", {"sequential": True}),
    "`cur`": ("cur", {}),
}

HEADER = [
    "method", "KL mean ± standard error", "KL median / p90 / p99 / max", "top-1", "perplexity", "ratio", "conversion, s"
]  # fmt: skip


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
    rows, counts, tokens = [], set(), 0
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder) / "original"
        export(source, original)
        gates = VerifyOptions(against=original, text=options.text, window=options.window, max_tokens=options.max_tokens)
        for label, (method, changes) in ROWS.items():
            chosen = ConvertOptions.for_method(
                method, rank=options.rank, calibration=CalibrationOptions(source=options.calibration), **changes
            )
            start = time.perf_counter()
            result = convert(source, Path(folder) / "out", chosen, overwrite=True)
            seconds = time.perf_counter() - start
            report = verify(result.path, gates)
            report.raise_for_failures()
            assert report.fidelity is not None
            assert result.plan is not None
            counts.add(result.plan.parameters_after)
            f = report.fidelity
            tokens = f.tokens
            rows.append([
                label,
                f"{f.kl.mean:.4f} ± {f.kl.standard_error or 0:.4f}",
                f"{f.kl.median:.3f} / {f.kl.p90:.3f} / {f.kl.p99:.3f} / {f.kl.max:.2f}",
                f"{f.top1:.4f}",
                f"{f.perplexity_original:.2f} → {f.perplexity_compressed:.2f}",
                f"{f.perplexity_ratio:.3f}",
                f"{seconds:.0f}",
            ])  # fmt: skip
            print(*rows[-1], file=sys.stderr)
    if len(counts) != 1:
        raise SystemExit(f"parameter counts differ: {counts}")
    before, after = result.plan.parameters_before, counts.pop()
    publish(
        "quality",
        f"""{MODEL_NAME}, float32, rank {options.rank}, q/k/gate of {result.plan.layer_total} layers chosen by angular
distance; matrices that would not shrink by 5 % stay dense: {before:,} → {after:,} parameters in every row.
Calibration: 128 × 128 tokens of {Path(options.calibration).name}. Text: {options.text.name}, windows of
{options.window} tokens, {tokens} positions. KL in nats, exact over the whole vocabulary. {machine()}.

{table(HEADER, rows)}

Made by `python benchmarks/quality.py --text {options.text.name}`.
""",
    )


if __name__ == "__main__":
    main()
