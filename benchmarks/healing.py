"""What healing wins back: perplexity and divergence over the steps, for ΔU, LoRA and MoRA at equal trained parameters.

The compressed models are CURing's setting (q/k/gate of the layers with the least angular distance, rank 128) by
`--method curing` and `--method cur`. LoRA (PEFT's) and MoRA (`mora.py`) are on the linears that stayed dense, towards
the same targets with the same data, batches and rates; their ranks are those that train as many numbers as U has.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import MODEL, MODEL_NAME, ROOT, machine, publish, table
from mora import attach, spread_ranks
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

import curconvert  # noqa: F401 - lets transformers load artifacts
from curconvert import CalibrationOptions, ConvertOptions, SourceOptions, convert
from curconvert.blocks.precision import multiplies_bfloat16
from curconvert.blocks.stored import build_torch_model
from curconvert.calibration.sampled import resident_model
from curconvert.checkpoint import open_checkpoint
from curconvert.journal.store import UNRECORDED
from curconvert.options.heal import HealOptions
from curconvert.training.examples import Data, load_data
from curconvert.training.loop import Point, train
from curconvert.training.student import held_out_measure, trainable, training_loss
from curconvert_runtime.checks.fidelity import text_windows
from curconvert_runtime.format.artifact import Artifact

PARTS = ("delta-u", "lora", "mora")
_DENSE = ("v_proj", "o_proj", "up_proj", "down_proj")


def losses(model: nn.Module, windows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each window's mean negative log-probability, in float32 logits."""
    found = []
    with torch.no_grad():
        for row in torch.from_numpy(windows):
            logits = model(input_ids=row[None], use_cache=False).logits[0, :-1].float()
            found.append(functional.cross_entropy(logits, row[1:]).item())
    return np.array(found)


@dataclass(frozen=True)
class Adapted:
    """A compressed model with something to train.

    Attributes:
        model: Frozen but for the parameters; transformers' model, or PEFT's around it.
        parameters: What is trained.
        ranks: Of LoRA's or MoRA's matrices, as text; empty for ΔU.
    """

    model: nn.Module
    parameters: list[nn.Parameter]
    ranks: str = ""

    @property
    def count(self) -> int:
        """Numbers that are trained."""
        return sum(parameter.numel() for parameter in self.parameters)


def adapted(part: str, artifact: Artifact) -> Adapted:
    """Load a compressed model with one of `PARTS` to train, each with as many numbers as U has."""
    model = build_torch_model(artifact)
    delta = Adapted(model, list(trainable(model, "u").values()))
    if part == "delta-u":
        return delta
    dense = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and n.endswith(_DENSE)}
    names = list(dense)
    if part == "mora":
        ranks = spread_ranks(delta.count, names, lambda _, rank: rank * rank, step=2)
        return Adapted(model, attach(model, names, ranks), _listed(ranks))
    sizes = {name: linear.in_features + linear.out_features for name, linear in dense.items()}
    ranks = spread_ranks(delta.count, names, lambda name, rank: rank * sizes[name])
    return lora(artifact.path, {name: rank for name, rank in zip(names, ranks, strict=True) if rank})


def lora(folder: Path, ranks: dict[str, int]) -> Adapted:
    """Attach LoRA to some linears, each with its own rank and α = 2 r."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    alphas = {name: 2 * rank for name, rank in ranks.items()}
    config = LoraConfig(target_modules=list(ranks), rank_pattern=ranks, alpha_pattern=alphas)
    wrapped: Any = get_peft_model(model, config)
    return Adapted(wrapped.eval(), [p for p in wrapped.parameters() if p.requires_grad], _listed(ranks.values()))


def _listed(ranks: Iterable[int]) -> str:
    return " and ".join(str(rank) for rank in sorted(set(ranks)))


def part_name(part: str, ranks: str) -> str:
    """Return a part's name for a table."""
    if part == "delta-u":
        return "ΔU"
    return f"{'LoRA, rank' if part == 'lora' else 'MoRA, r̂'} {ranks}, on the dense linears"


def trained(
    found: Adapted, teacher: nn.Module | None, data: Data, options: HealOptions, label: str
) -> tuple[list[Point], float]:
    """Train what is to be trained; return the curve and the seconds of all cores."""
    start = time.process_time()

    def progress(_stage: str, done: int, total: int) -> None:
        if done % 10 == 0:
            print(f"{label}: {done}/{total}, {time.process_time() - start:.0f} s", file=sys.stderr)

    dtype = torch.bfloat16 if multiplies_bfloat16() else torch.float32
    curve = train(
        found.parameters, training_loss(found.model, teacher, data.training, options, dtype),
        held_out_measure(found.model, teacher, data.held_out, options), data.training.counts, options, UNRECORDED,
        "heal", progress,
    )  # fmt: skip
    return curve, time.process_time() - start


def run(method: str, part: str, folder: Path, given: argparse.Namespace, options: HealOptions) -> dict[str, Any]:
    """Heal one compressed model in one way, and measure it on the text before and after."""
    checkpoint = open_checkpoint(given.model)
    calibration = CalibrationOptions(source=given.calibration)
    convert(SourceOptions(given.model), folder, ConvertOptions.for_method(method, rank=128, calibration=calibration))
    artifact = Artifact.open(folder)
    data = load_data(options, artifact.file("tokenizer.json"), artifact.model["vocab_size"])
    teacher, found = resident_model(checkpoint), adapted(part, artifact)
    windows = text_windows(artifact, given.text.read_text(encoding="utf-8"), given.window, given.max_tokens)
    before = losses(found.model, windows)
    curve, seconds = trained(found, teacher, data, options, f"{method} {part}")
    dense, after = losses(teacher, windows), losses(found.model, windows)
    return {
        "method": method, "part": part, "rank": found.ranks, "trained": found.count,
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


def options_of(description: str | None, steps: int, results: str) -> argparse.ArgumentParser:
    """Return the options of a benchmark that trains each method's model in each part."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--text", type=Path, required=True, help="evaluation text, UTF-8")
    parser.add_argument("--calibration", required=True, help="text to calibrate on, another one")
    parser.add_argument("--methods", nargs="+", default=["curing", "cur"])
    parser.add_argument("--parts", nargs="+", default=[*PARTS], choices=PARTS)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="above the paper's: fewer steps")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=24 * 512)
    parser.add_argument("--results", type=Path, default=ROOT / ".cache" / "benchmarks" / results)
    parser.add_argument("--publish", action="store_true", help="write docs/benchmarks.md from --results")
    return parser


def measured_parts(
    given: argparse.Namespace, setting: dict[str, Any], measure: Callable[[str, str, Path], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the points of a setting, those that `--results` holds and those that are measured now and added to it.

    Args:
        given: Methods, parts and results.
        setting: What points have in common that may stand beside each other.
        measure: Of a method and a part, with a scratch folder.
    """
    lines = given.results.read_text().splitlines() if given.results.exists() else []
    same = [point for point in map(json.loads, lines) if setting.items() <= point.items()]
    points = {(point["method"], point["part"]): point for point in same}
    for method in given.methods:
        for part in given.parts:
            if (method, part) in points:
                continue
            with tempfile.TemporaryDirectory() as folder:
                points[method, part] = {**measure(method, part, Path(folder)), **setting}
            given.results.parent.mkdir(parents=True, exist_ok=True)
            with given.results.open("a") as file:
                file.write(json.dumps(points[method, part]) + "\n")
    return list(points.values())


def main() -> None:
    """Measure what is missing, publish."""
    given = options_of(__doc__, 600, "healing.jsonl").parse_args()
    data = CalibrationOptions(source=given.calibration, sequences=8192)
    options = HealOptions(
        steps=given.steps,
        warmup=min(100, given.steps // 6),
        data=data,
        patience=given.steps,
        learning_rate=given.learning_rate,
    )
    points = measured_parts(
        given,
        {"steps": given.steps},
        lambda method, part, folder: run(method, part, folder / "out", given, options),
    )
    if given.publish:
        report(points, given, options)


def report(points: list[dict[str, Any]], given: argparse.Namespace, options: HealOptions) -> None:
    """Write the section."""
    rows, curves = [], []
    for point in points:
        perplexities = {name: math.exp(np.mean(values)) for name, values in point["losses"].items()}
        share, error = recovered(point["losses"])
        name = part_name(point["part"], point["rank"])
        rows.append([
            f"`{point['method']}`", name, f"{point['trained']:,}",
            f"{perplexities['original']:.2f}", f"{perplexities['before']:.2f}", f"{perplexities['after']:.2f}",
            f"{share:.1%} ± {error:.1%}", f"{point['seconds'] / 60:.0f}",
        ])  # fmt: skip
        curve = [Point(**entry) for entry in point["curve"]]
        shown = curve[:: max(1, len(curve) // 6)]
        shown += [] if shown[-1] is curve[-1] else [curve[-1]]
        curves.append(f"- `{point['method']}`, {name}: " + ", ".join(f"{p.step}: {p.held_out:.3f}" for p in shown))
    header = ["method", "trained", "numbers", "original", "compressed", "healed", "share won back", "CPU minutes"]
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
