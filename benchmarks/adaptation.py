"""What learning a task costs elsewhere: PIQA against WikiText-2, for ΔU, LoRA and MoRA at equal trained parameters.

The compressed models and what is trained are those of `healing.py`. The task is PIQA's question as a prompt and its
right solution as the completion: the first questions train, the last ones are held out, and are answered by the
log-probability of both solutions. What is forgotten is the perplexity of a text of another kind.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import MODEL_NAME, machine, publish, table
from healing import adapted, losses, measured_parts, options_of, part_name, trained
from numpy.typing import NDArray
from tasks import Question, Scorer, accuracy, piqa, piqa_questions, piqa_scores
from torch import nn

from curconvert import CalibrationOptions, ConvertOptions, SourceOptions, convert
from curconvert.calibration.sampled import resident_model
from curconvert.checkpoint import open_checkpoint
from curconvert.options.heal import HealOptions
from curconvert.training.examples import load_data
from curconvert_runtime.checks.fidelity import text_windows
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.serve.text import Tokenizer

_LONGEST = 256  # tokens of a line


def measured(
    model: nn.Module, tokenizer: Tokenizer, questions: Sequence[Question], windows: NDArray[np.int64]
) -> dict[str, list[float]]:
    """Return each question's scores of the right and of the other solution, and each window's loss."""
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    scores = piqa_scores(Scorer(base), tokenizer, questions)
    right = [row[question.label] for row, question in zip(scores, questions, strict=True)]
    return {
        "right": [float(score) for score in right],
        "correct": [float(found) for found in piqa(questions, scores)],
        "text": losses(model, windows).tolist(),
    }


def write_task(path: Path, questions: Sequence[Question]) -> None:
    """Write questions with their right solutions as `curconvert heal --objective ce` reads them."""
    lines = [{"prompt": question.prompt, "completion": question.solutions[question.label]} for question in questions]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")


def run(method: str, part: str, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Adapt one compressed model in one way, and measure task and text before and after."""
    calibration = CalibrationOptions(source=given.calibration)
    options = ConvertOptions.for_method(method, rank=128, calibration=calibration)
    convert(SourceOptions(given.model), folder / "out", options)
    artifact = Artifact.open(folder / "out")
    questions, tokenizer = piqa_questions(given.piqa), Tokenizer(artifact)
    if len(questions) < given.train + given.held_out:
        sys.exit(f"{given.piqa}: {len(questions)} questions, but --train {given.train} --held-out {given.held_out}")
    write_task(folder / "piqa.jsonl", questions[: given.train])
    healing = heal_options(given, folder / "piqa.jsonl")
    data = load_data(healing, artifact.file("tokenizer.json"), artifact.model["vocab_size"])
    windows = text_windows(artifact, given.text.read_text(encoding="utf-8"), given.window, given.max_tokens)
    asked = questions[-given.held_out :]
    original = measured(resident_model(open_checkpoint(given.model)), tokenizer, asked, windows)
    found = adapted(part, artifact)
    before = measured(found.model, tokenizer, asked, windows)
    curve, seconds = trained(found, None, data, healing, f"{method} {part}")
    return {
        "method": method, "part": part, "rank": found.ranks, "trained": found.count, "seconds": seconds,
        "examples": len(data.training), "notices": list(data.notices), "curve": [vars(point) for point in curve],
        "original": original, "before": before, "after": measured(found.model, tokenizer, asked, windows),
    }  # fmt: skip


def heal_options(given: argparse.Namespace, task: Path) -> HealOptions:
    """Return the training's options: the paper's schedule, shortened, and no early end."""
    return HealOptions.for_objective(
        "ce", steps=given.steps, accumulate=4, warmup=min(100, given.steps // 6), patience=given.steps,
        evaluate_every=max(1, given.steps // 10), learning_rate=given.learning_rate,
        data=CalibrationOptions(str(task), sequences=given.train, tokens_per_sequence=_LONGEST),
    )  # fmt: skip


def main() -> None:
    """Measure what is missing, publish."""
    parser = options_of(__doc__, 100, "adaptation.jsonl")
    parser.add_argument("--piqa", type=Path, required=True, help="folder with valid.jsonl and valid-labels.lst")
    parser.add_argument("--train", type=int, default=450, help="questions to train on, the first ones")
    parser.add_argument("--held-out", type=int, default=150, help="questions to answer, the last ones")
    given = parser.parse_args()
    setting = {"steps": given.steps, "rate": given.learning_rate, "train": given.train, "held_out": given.held_out}
    points = measured_parts(given, setting, lambda method, part, folder: run(method, part, folder, given))
    if given.publish:
        report(points, given)


def _mean(values: Sequence[float]) -> str:
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    return f"{np.mean(values):.2f} ± {error:.2f}"


def cells(point: dict[str, list[float]]) -> list[str]:
    """Format one model's numbers: accuracy, log-probability of the right solution, perplexity."""
    found = accuracy([bool(value) for value in point["correct"]])
    text = f"{math.exp(np.mean(point['text'])):.2f}"
    return [f"{found['share']:.1%} ± {found['error']:.1%}", f"{-np.mean(point['right']):.2f}", text]


def report(points: list[dict[str, Any]], given: argparse.Namespace) -> None:
    """Write the section."""
    options = heal_options(given, Path("piqa.jsonl"))
    rows = [["–", "original", "", *cells(points[0]["original"]), "", ""]]
    for method in dict.fromkeys(point["method"] for point in points):
        chosen = [point for point in points if point["method"] == method]
        rows.append([f"`{method}`", "nothing", "", *cells(chosen[0]["before"]), "", ""])
        for p in chosen:
            gained = [after - before for after, before in zip(p["after"]["right"], p["before"]["right"], strict=True)]
            rows.append([
                f"`{method}`", part_name(p["part"], p["rank"]), f"{p['trained']:,}", *cells(p["after"]),
                _mean(gained), f"{p['seconds'] / 60:.0f}",
            ])  # fmt: skip
    header = [
        "method",
        "trained",
        "numbers",
        "accuracy",
        "nats of the right one",
        "perplexity",
        "nats gained",
        "CPU minutes",
    ]
    publish(
        "adaptation",
        f"""{MODEL_NAME}, CURing's setting (rank 128, q/k/gate of 9 layers by angular distance, calibrated on
{Path(given.calibration).name}), then trained for {given.steps} steps of {options.batch} on {points[0]["examples"]} of
the first {given.train} questions of PIQA, the right solution as the completion (cross-entropy on its tokens alone,
AdamW at {options.learning_rate:g}, bfloat16 products; the best of the states by the cross-entropy on other questions
among the {given.train}). Task: the last {given.held_out} questions, accuracy by the log-probability of both solutions
± binomial standard error, and the mean −log-probability of the right one; what training gained of it ± standard error
of the paired differences. Forgetting: perplexity of {given.text.name}, {given.max_tokens // given.window} windows of
{given.window} tokens. {machine()}.

{table(header, rows)}

Made by `python benchmarks/adaptation.py --piqa {given.piqa.name} --text {given.text.name}
--calibration {Path(given.calibration).name} --steps {given.steps} --learning-rate {given.learning_rate:g} --publish`.
""",
    )


if __name__ == "__main__":
    main()
