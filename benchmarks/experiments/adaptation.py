"""Measures what a model forgets while it learns a task, for ΔU, LoRA and MoRA at equal trained parameters.

Compressed models and trained parameters are those of `healing.py`. The task is PIQA: the question is the prompt, and
the right solution is the completion. The first questions are for training, the last ones are held out. A held-out
question counts as correct if the right solution has the higher log-probability. Perplexity on WikiText-2 shows how much
is forgotten.

Decided: nothing yet, because nobody has run this experiment.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from benchmarks.common import Result, torch_threads
from benchmarks.experiments.healing import adapted, losses, part_name, trained, training_arguments
from benchmarks.fidelity import text_setting
from benchmarks.suite.tasks import Question, Scorer, accuracy, piqa, piqa_questions, piqa_scores
from curconvert import CalibrationOptions, ConvertOptions, SourceOptions, convert
from curconvert.calibration.self_text import resident_model
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.companions import artifact_companions
from curconvert.options.heal import HealOptions
from curconvert.training.examples import load_data
from curconvert_runtime.checks.fidelity import text_windows
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.serve.text import Tokenizer

_LONGEST = 256  # tokens of a line


@dataclass(frozen=True)
class Outputs:
    """A model's results on task and text.

    Attributes:
        right: Log-probability of each question's right solution.
        correct: Whether the right solution is the more probable one.
        text: Loss of each window.
    """

    right: NDArray[np.float64]
    correct: list[bool]
    text: NDArray[np.float64]

    @property
    def figures(self) -> dict[str, float]:
        """Return accuracy, mean nats of the right solution, and the text's perplexity."""
        found = accuracy(self.correct)
        return {
            "accuracy": found["share"], "accuracy_error": found["error"], "nats": -float(self.right.mean()),
            "perplexity": math.exp(self.text.mean()),
        }  # fmt: skip


def measured(
    model: nn.Module, tokenizer: Tokenizer, questions: Sequence[Question], windows: NDArray[np.int64]
) -> Outputs:
    """Return a model's results on task and text."""
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    scores = piqa_scores(Scorer(base), tokenizer, questions)
    right = np.array([row[question.label] for row, question in zip(scores, questions, strict=True)])
    return Outputs(right, piqa(questions, scores), losses(model, windows))


def write_task(path: Path, questions: Sequence[Question]) -> None:
    """Write questions with their right solutions as `curconvert heal --objective ce` reads them."""
    lines = [{"prompt": question.prompt, "completion": question.solutions[question.label]} for question in questions]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")


def run(method: str, part: str, folder: Path, given: Namespace, result: Result) -> None:
    """Train one compressed model with one method; measure task and text before and after."""
    calibration = CalibrationOptions(source=given.calibration)
    options = ConvertOptions.for_method(method, rank=128, calibration=calibration)
    convert(SourceOptions(str(given.model)), folder / "out", options)
    artifact = Artifact.open(folder / "out")
    questions, tokenizer = piqa_questions(given.piqa), Tokenizer(artifact)
    if len(questions) < given.train + given.held_out:
        sys.exit(f"{given.piqa}: {len(questions)} questions, but --train {given.train} --held-out {given.held_out}")
    write_task(folder / "piqa.jsonl", questions[: given.train])
    healing = heal_options(given, folder / "piqa.jsonl")
    data = load_data(healing, artifact_companions(artifact), artifact.model["vocab_size"])
    windows, _ = text_windows(artifact, given.text.read_text(encoding="utf-8"), given.window, given.max_tokens)
    asked = questions[-given.held_out :]
    if not result.find("adapted", trained="original"):
        original = measured(resident_model(open_checkpoint(str(given.model))), tokenizer, asked, windows)
        result.add("adapted", original.figures, method="–", trained="original")
    found = adapted(part, artifact)
    before = measured(found.model, tokenizer, asked, windows)
    result.add("adapted", before.figures, method=method, trained="nothing")
    _, seconds = trained(found, None, data, healing, f"{method} {part}")
    after = measured(found.model, tokenizer, asked, windows)
    gained = after.right - before.right
    row = {
        "numbers": found.count, **after.figures, "gained": float(gained.mean()),
        "gained_error": float(gained.std(ddof=1) / math.sqrt(len(gained))), "seconds": seconds,
    }  # fmt: skip
    result.add("adapted", row, method=method, trained=part_name(part, found.ranks))


def heal_options(given: Namespace, task: Path) -> HealOptions:
    """Return the training options: the paper's schedule with fewer steps and no early stopping."""
    return HealOptions.for_objective(
        "ce", steps=given.steps, accumulate=4, warmup=min(100, given.steps // 6), patience=given.steps,
        evaluate_every=max(1, given.steps // 10), learning_rate=given.learning_rate,
        data=CalibrationOptions(str(task), sequences=given.train, tokens_per_sequence=_LONGEST),
    )  # fmt: skip


def main() -> None:
    """Train each model with each method."""
    parser = training_arguments("adaptation", __doc__, 100)
    parser.add_argument("--piqa", type=Path, required=True, help="folder with valid.jsonl and valid-labels.lst")
    parser.add_argument("--train", type=int, default=450, help="questions to train on, the first ones")
    parser.add_argument("--held-out", type=int, default=150, help="questions to answer, the last ones")
    given = parser.parse_args()
    setting = text_setting(given, CalibrationOptions(source=given.calibration)) | {
        "method": "rank 128, q/k/gate of 9 layers by angular distance", "steps": given.steps,
        "learning rate": given.learning_rate, "trained on": given.train, "held out": given.held_out,
    }  # fmt: skip
    result = Result(given.out, setting, torch_threads())
    for method, part in product(given.methods, given.parts):
        with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
            run(method, part, Path(folder), given, result)


if __name__ == "__main__":
    main()
