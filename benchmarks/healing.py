"""What healing wins back: perplexity and divergence over the steps, for ΔU and for LoRA at equal trained parameters.

The compressed models are CURing's setting (q/k/gate of the layers with the least angular distance, rank 128) by
`--method curing` and `--method cur`. LoRA is PEFT's, on the linears that stayed dense, towards the same targets with
the same data, batches and rates; its rank is the one that trains as many numbers as U has.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import MODEL, MODEL_NAME, ROOT, machine, publish, table
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

import curconvert  # noqa: F401 - lets transformers load artifacts
from curconvert import CalibrationOptions, ConvertOptions, SourceOptions, convert
from curconvert.artifact.journal import UNRECORDED
from curconvert.blocks.precision import multiplies_bfloat16
from curconvert.calibration.sampled import resident_model
from curconvert.calibration.text import load_tokens
from curconvert.checkpoint import open_checkpoint
from curconvert.healing.options import HealOptions
from curconvert.healing.student import distillation, held_out_divergence, trainable
from curconvert.healing.training import Point, train
from curconvert.parity import build_torch_model
from curconvert_runtime.artifact import Artifact
from curconvert_runtime.fidelity import text_windows

PARTS = ("delta-u", "lora")
_DENSE = ("v_proj", "o_proj", "up_proj", "down_proj")


def losses(model: nn.Module, windows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each window's mean negative log-probability, in float32 logits."""
    found = []
    with torch.no_grad():
        for row in torch.from_numpy(windows):
            logits = model(input_ids=row[None], use_cache=False).logits[0, :-1].float()
            found.append(functional.cross_entropy(logits, row[1:]).item())
    return np.array(found)


def lora(folder: Path, count: int) -> tuple[nn.Module, list[nn.Parameter], int]:
    """Attach LoRA to the dense linears, with the rank that trains about as many numbers."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    sizes = [
        module.in_features + module.out_features
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(_DENSE)
    ]
    rank = max(1, round(count / sum(sizes)))
    wrapped: Any = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(_DENSE)))
    return wrapped.eval(), [p for p in wrapped.parameters() if p.requires_grad], rank


def run(method: str, part: str, folder: Path, given: argparse.Namespace, options: HealOptions) -> dict[str, Any]:
    """Heal one compressed model in one way, and measure it on the text before and after."""
    checkpoint = open_checkpoint(given.model)
    calibration = CalibrationOptions(source=given.calibration)
    convert(SourceOptions(given.model), folder, ConvertOptions.for_method(method, rank=128, calibration=calibration))
    artifact = Artifact.open(folder)
    tokens = load_tokens(options.data, artifact.file("tokenizer.json"), vocab_size=artifact.model["vocab_size"])
    teacher, student = resident_model(checkpoint), build_torch_model(artifact)
    parameters = list(trainable(student, options.train).values())
    count, rank = sum(parameter.numel() for parameter in parameters), 0
    if part == "lora":
        student, parameters, rank = lora(folder, count)
    windows = text_windows(artifact, given.text.read_text(encoding="utf-8"), given.window, given.max_tokens)
    before = losses(student, windows)
    start = time.perf_counter()

    def progress(_stage: str, done: int, total: int) -> None:
        if done % 10 == 0:
            print(f"{method} {part}: {done}/{total}, {time.perf_counter() - start:.0f} s", file=sys.stderr)

    dtype = torch.bfloat16 if multiplies_bfloat16() else torch.float32
    curve = train(
        parameters, distillation(student, teacher, tokens.calibration, options, dtype),
        lambda: held_out_divergence(student, teacher, tokens.probes), len(tokens.calibration), options, UNRECORDED,
        "heal", progress,
    )  # fmt: skip
    seconds, dense, after = time.perf_counter() - start, losses(teacher, windows), losses(student, windows)
    return {
        "method": method, "part": part, "rank": rank, "trained": sum(p.numel() for p in parameters),
        "seconds": seconds, "curve": [vars(point) for point in curve],
        "losses": {"original": dense.tolist(), "before": before.tolist(), "after": after.tolist()},
    }  # fmt: skip


def recovered(losses: dict[str, list[float]]) -> tuple[float, float]:
    """Return the share of the lost perplexity that is won back, and its standard error (jackknife over windows)."""
    sums = {name: np.array(values) for name, values in losses.items()}

    def share(kept: NDArray[np.bool_]) -> float:
        dense, before, after = (math.exp(sums[name][kept].mean()) for name in ("original", "before", "after"))
        return (before - after) / (before - dense)

    count = len(sums["before"])
    folds = np.array([share(np.arange(count) != index) for index in range(count)])
    return share(np.ones(count, bool)), float(np.sqrt((count - 1) * folds.var()))


def main() -> None:
    """Measure what is missing, publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--text", type=Path, required=True, help="evaluation text, UTF-8")
    parser.add_argument("--calibration", required=True, help="text to calibrate and to heal on, another one")
    parser.add_argument("--methods", nargs="+", default=["curing", "cur"])
    parser.add_argument("--parts", nargs="+", default=[*PARTS], choices=PARTS)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="above the paper's: fewer steps")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=24 * 512)
    parser.add_argument("--results", type=Path, default=ROOT / ".cache" / "benchmarks" / "healing.jsonl")
    parser.add_argument("--publish", action="store_true", help="write docs/benchmarks.md from --results")
    given = parser.parse_args()
    data = CalibrationOptions(source=given.calibration, sequences=8192)
    options = HealOptions(
        steps=given.steps,
        warmup=min(100, given.steps // 6),
        data=data,
        patience=given.steps,
        learning_rate=given.learning_rate,
    )
    lines = given.results.read_text().splitlines() if given.results.exists() else []
    points = {(p["method"], p["part"], p["steps"]): p for p in map(json.loads, lines)}
    for method in given.methods:
        for part in given.parts:
            if (method, part, given.steps) in points:
                continue
            with tempfile.TemporaryDirectory() as folder:
                found = {**run(method, part, Path(folder) / "out", given, options), "steps": given.steps}
            points[method, part, given.steps] = found
            given.results.parent.mkdir(parents=True, exist_ok=True)
            with given.results.open("a") as file:
                file.write(json.dumps(found) + "\n")
    if given.publish:
        report([point for point in points.values() if point["steps"] == given.steps], given, options)


def report(points: list[dict[str, Any]], given: argparse.Namespace, options: HealOptions) -> None:
    """Write the section."""
    rows, curves = [], []
    for point in points:
        perplexities = {name: math.exp(np.mean(values)) for name, values in point["losses"].items()}
        share, error = recovered(point["losses"])
        name = "ΔU" if point["part"] == "delta-u" else f"LoRA, rank {point['rank']}, on the dense linears"
        rows.append([
            f"`{point['method']}`", name, f"{point['trained']:,}",
            f"{perplexities['original']:.2f}", f"{perplexities['before']:.2f}", f"{perplexities['after']:.2f}",
            f"{share:.1%} ± {error:.1%}", f"{point['seconds'] / 60:.0f}",
        ])  # fmt: skip
        curve = [Point(**entry) for entry in point["curve"]]
        shown = curve[:: max(1, len(curve) // 6)]
        shown += [] if shown[-1] is curve[-1] else [curve[-1]]
        curves.append(f"- `{point['method']}`, {name}: " + ", ".join(f"{p.step}: {p.held_out:.3f}" for p in shown))
    header = ["method", "trained", "numbers", "original", "compressed", "healed", "share won back", "minutes"]
    publish(
        "healing",
        f"""{MODEL_NAME}, CURing's setting (rank 128, q/k/gate of 9 layers by angular distance), healed for
{given.steps} steps of {options.batch} × {options.data.tokens_per_sequence} tokens of {Path(given.calibration).name}
({options.hidden} × hidden states + {options.ce} × cross-entropy, AdamW at {options.learning_rate:g}, bfloat16
products). Perplexity of {given.text.name}, {given.max_tokens // given.window} windows of {given.window} tokens,
float32; the share won back is of the perplexity that compression had lost, ± standard error (jackknife over windows).
{machine()}.

{table(header, rows)}

KL to the original on 16 held-out sequences of the training text, nats per token, by steps:

{chr(10).join(curves)}

Made by `python benchmarks/healing.py --text {given.text.name} --calibration {Path(given.calibration).name}
--steps {given.steps} --learning-rate {given.learning_rate:g} --publish`.
""",
    )


if __name__ == "__main__":
    main()
