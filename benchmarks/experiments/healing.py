"""Measures how much perplexity and divergence healing recovers, for ΔU, LoRA and MoRA at equal trained parameters.

The compressed models have CURing's setting (q/k/gate of the layers with the least angular distance, rank 128), from
`--method curing` and `--method cur`. LoRA (PEFT's) and MoRA (`mora.py`) train beside the dense linears, with the same
targets, data, batches and learning rates. Their ranks give as many trained parameters as U has.

Decided: `heal` trains U, because U recovers as much perplexity as LoRA and more than MoRA at equal trained parameters,
and the artifact needs no new tensor.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

import curconvert  # noqa: F401 - lets transformers load artifacts
from benchmarks.common import Result, torch_threads
from benchmarks.experiments.mora import attach, spread_ranks
from benchmarks.fidelity import text_arguments, text_setting
from curconvert import CalibrationOptions, ConvertOptions, SourceOptions, convert
from curconvert.blocks.precision import multiplies_bfloat16
from curconvert.blocks.stored import build_torch_model
from curconvert.calibration.self_text import resident_model
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.companions import artifact_companions
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
    """Return each window's mean negative log-probability, from float32 logits."""
    found = []
    with torch.no_grad():
        for row in torch.from_numpy(windows):
            logits = model(input_ids=row[None], use_cache=False).logits[0, :-1].float()
            found.append(functional.cross_entropy(logits, row[1:]).item())
    return np.array(found)


@dataclass(frozen=True)
class Adapted:
    """A compressed model with trainable parameters.

    Attributes:
        model: transformers' model, or PEFT's around it; frozen except for the parameters.
        parameters: The trained parameters.
        ranks: Ranks of LoRA's or MoRA's matrices, as text; empty for ΔU.
    """

    model: nn.Module
    parameters: list[nn.Parameter]
    ranks: str = ""

    @property
    def count(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters)


def adapted(part: str, artifact: Artifact) -> Adapted:
    """Return a compressed model with one of `PARTS` to train; each trains as many parameters as U has."""
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
    """Train a model; return the curve and the CPU seconds of all cores."""
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


def run(
    method: str, part: str, folder: Path, given: Namespace, options: HealOptions
) -> tuple[str, dict[str, Any], list[Point]]:
    """Heal one compressed model with one method; return the part's name, the recovered share, and the curve."""
    checkpoint = open_checkpoint(str(given.model))
    calibration = CalibrationOptions(source=given.calibration)
    convert(
        SourceOptions(str(given.model)), folder, ConvertOptions.for_method(method, rank=128, calibration=calibration)
    )
    artifact = Artifact.open(folder)
    data = load_data(options, artifact_companions(artifact), artifact.model["vocab_size"])
    teacher, found = resident_model(checkpoint), adapted(part, artifact)
    windows, _ = text_windows(artifact, given.text.read_text(encoding="utf-8"), given.window, given.max_tokens)
    before = losses(found.model, windows)
    curve, seconds = trained(found, teacher, data, options, f"{method} {part}")
    texts = {"original": losses(teacher, windows), "before": before, "after": losses(found.model, windows)}
    share, error = recovered(texts)
    original, compressed, healed = (math.exp(values.mean()) for values in texts.values())
    row = {
        "steps": given.steps, "numbers": found.count, "original": original, "compressed": compressed, "healed": healed,
        "share": share, "share_error": error, "seconds": seconds,
    }  # fmt: skip
    return part_name(part, found.ranks), row, curve


def recovered(losses: dict[str, NDArray[np.float64]]) -> tuple[float, float]:
    """Return the share of the lost perplexity that is recovered, and its standard error (jackknife over windows)."""

    def share(kept: NDArray[np.bool_]) -> float:
        dense, before, after = (math.exp(losses[name][kept].mean()) for name in ("original", "before", "after"))
        return (before - after) / (before - dense)

    count = len(losses["before"])
    folds = np.array([share(np.arange(count) != index) for index in range(count)])
    return share(np.ones(count, bool)), float(np.sqrt((count - 1) * folds.var()))


def training_arguments(name: str, description: str | None, steps: int) -> ArgumentParser:
    """Return the argument parser of a script that trains each method's model in each part."""
    parser = text_arguments(name, description)
    parser.add_argument("--methods", nargs="+", default=["curing", "cur"])
    parser.add_argument("--parts", nargs="+", default=[*PARTS], choices=PARTS)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="above the paper's: fewer steps")
    return parser


def main() -> None:
    """Heal each model with each method."""
    given = training_arguments("healing", __doc__, 600).parse_args()
    options = HealOptions(
        steps=given.steps,
        warmup=min(100, given.steps // 6),
        data=CalibrationOptions(source=given.calibration, sequences=8192),
        patience=given.steps,
        learning_rate=given.learning_rate,
    )
    setting = text_setting(given, CalibrationOptions(source=given.calibration)) | {
        "method": "rank 128, q/k/gate of 9 layers by angular distance",
        "training": f"steps of {options.batch} × {options.data.tokens_per_sequence} tokens, {options.hidden} × hidden "
        f"states + {options.ce} × cross-entropy, AdamW at {options.learning_rate:g}, bfloat16 products",
    }  # fmt: skip
    result = Result(given.out, setting, torch_threads())
    for method, part in product(given.methods, given.parts):
        with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
            name, row, curve = run(method, part, Path(folder) / "out", given, options)
        result.add("healed", row, method=method, trained=name)
        for point in curve:
            result.add("curves", {"kl": point.held_out}, method=method, trained=name, step=point.step)


if __name__ == "__main__":
    main()
