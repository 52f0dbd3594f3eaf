"""Is `resize` from one scored artifact as good as a fresh conversion of that size?

One conversion with `--method auto --scored`; from it `resize` to each smaller size. Beside them fresh conversions by
`--method auto`: those that quality.py has measured on the same text are taken from its results, others are measured
here and kept there. Results of this script go to `--results`; what stands there is not measured again.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import MODEL, MODEL_NAME, ROOT, machine, publish, table
from quality import Bench, Results, setting_of

from curconvert import CalibrationOptions, ConvertOptions, SourceOptions, convert
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.linears import total_parameters
from curconvert.jobs.resize import resize
from curconvert.options.resize import ResizeOptions

SCORED, RESIZED = "scored", "resize"
LIMIT = 0.03
"""What the perplexity of a resized model may differ from that of a fresh one, relatively."""


def main() -> None:
    """Convert, cut, measure, publish."""
    options = arguments()
    source, calibration = SourceOptions(options.model), CalibrationOptions(source=options.calibration)
    checkpoint = open_checkpoint(options.model)
    whole = total_parameters(checkpoint)
    targets = [int(keep * whole) for keep in options.keep]
    setting = setting_of(options, calibration, whole)
    fresh = Results(options.fresh, setting)
    results = Results(options.results, {**setting, "scored": options.scored_keep})
    missing = [target for target in targets if not fresh.has("auto", target, "fidelity")]
    wanted = [target for target in targets if not results.has(RESIZED, target, "fidelity")]
    if missing or wanted:
        with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
            bench = Bench(Path(folder), source, options, ["fidelity"])
            if missing:
                for point in bench.points({"auto": missing}, checkpoint, calibration):
                    fresh.add(point)
            if wanted:
                scored = options.scored or Path(folder) / SCORED
                if not scored.exists():
                    asked = ConvertOptions.for_method(
                        "auto", keep=options.scored_keep, scored=True, calibration=calibration
                    )
                    start = time.perf_counter()
                    made = convert(source, scored, asked).plan
                    assert made is not None
                    seconds = [time.perf_counter() - start]
                    results.add({
                        "method": SCORED, "target": int(options.scored_keep * whole),
                        "parameters": made.parameters_after, "seconds": seconds, "bytes": components(scored),
                    })  # fmt: skip
                for target in wanted:
                    point = cut(bench, scored, target, Path(folder) / f"{target}")
                    results.add(point)
                    print(target, point["fidelity"]["perplexity_compressed"], point["seconds"], file=sys.stderr)
    if options.publish:
        report(fresh, results, targets, int(options.scored_keep * whole), options)


def cut(bench: Bench, scored: Path, target: int, out: Path) -> dict[str, Any]:
    """Resize once, and measure it."""
    start = time.perf_counter()
    plan = resize(scored, out, ResizeOptions(target_parameters=target)).plan
    seconds = [time.perf_counter() - start]
    found = bench.evaluate(out)
    shutil.rmtree(out)
    return {"method": RESIZED, "target": target, "parameters": plan.parameters_after, "seconds": seconds, **found}


def components(folder: Path) -> list[int]:
    """Return the bytes of the components, and of the weights."""
    return [
        sum(path.stat().st_size for path in folder.glob(f"{name}*")) for name in ("components", "model*.safetensors")
    ]


def report(fresh: Results, results: Results, targets: list[int], scored: int, options: argparse.Namespace) -> None:
    """Write the section."""
    rows, ratios = [], []
    for target in targets:
        ours, theirs = results.points[RESIZED, target], fresh.points["auto", target]
        a, b = ours["fidelity"], theirs["fidelity"]
        ratios.append(a["perplexity_compressed"] / b["perplexity_compressed"])
        rows.append([
            f"{target / total(results):.2f}", f"{ours['parameters']:,} / {theirs['parameters']:,}",
            f"{a['kl']['mean']:.4f} / {b['kl']['mean']:.4f}",
            f"{a['perplexity_compressed']:.2f} / {b['perplexity_compressed']:.2f}", f"{ratios[-1]:.4f}",
            f"{sum(ours['seconds']):.0f} / {sum(theirs['seconds']):.0f}",
        ])  # fmt: skip
    most = max(abs(ratio - 1) for ratio in ratios)
    source = results.points.get((SCORED, scored), {})
    size = "" if "bytes" not in source else (
        f" Scoring took {sum(source['seconds']):.0f} s, conversion included; its components take "
        f"{source['bytes'][0] / 1e6:.0f} MB beside {source['bytes'][1] / 1e6:.0f} MB of weights."
    )  # fmt: skip
    header = ["kept", "parameters", "KL", "perplexity", "ratio", "seconds"]
    setting = setting_of(options, CalibrationOptions(source=options.calibration), total(results))
    publish(
        "resize",
        f"""`curconvert resize` from one artifact that `--method auto --keep {options.scored_keep:g} --scored` made, / a
fresh conversion by `--method auto` to the same size. {MODEL_NAME}, float32, {setting["calibration"]}, half of the
sequences written by the model. Text: {setting["text"]}. Seconds without verification; those of a fresh conversion
include the passes over the original, which were shared by several sizes. KL in nats per token.{size} {machine()}.

{table(header, rows)}

The perplexities differ by {most:.2%} at most.

Made by `python benchmarks/resize.py --text {options.text.name} --calibration {Path(options.calibration).name}
--publish`.
""",
    )
    if most > LIMIT:
        raise SystemExit(f"perplexity of a resized model differs by {most:.1%} from that of a fresh one")


def total(results: Results) -> int:
    """Return the parameters of the original."""
    return int(results.setting["original"])


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--text", type=Path, required=True, help="evaluation text, UTF-8")
    parser.add_argument("--calibration", required=True, help="another text than the evaluation's")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.9, 0.8, 0.7])
    parser.add_argument("--scored-keep", type=float, default=0.95, help="size of the scored artifact")
    parser.add_argument("--scored", type=Path, help="folder of the scored artifact, made where it is not there")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=24 * 512)
    home = ROOT / ".cache" / "benchmarks"
    parser.add_argument("--fresh", type=Path, default=home / "quality.jsonl", help="results of quality.py")
    parser.add_argument("--results", type=Path, default=home / "resize.jsonl")
    parser.add_argument("--scratch", type=Path, help="folder for temporary files; the original's logits take gigabytes")
    parser.add_argument("--publish", action="store_true", help="write docs/benchmarks.md from the results")
    options = parser.parse_args()
    options.limit = math.inf  # of perplexities that quality.py goes on measuring
    return options


if __name__ == "__main__":
    main()
