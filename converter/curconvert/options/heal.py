"""Options of `heal`: what to train, on which data, and for how long."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from curconvert.base.checks import one_of
from curconvert.base.errors import InputError
from curconvert.options.calibration import CalibrationOptions

Trained = Literal["u", "u+norms"]
Mode = Literal["whole", "blocks"]
Objective = Literal["distill", "ce"]
Start = Literal["none", "als"]
SEQUENCES = 8192
"""Default of the largest number of training sequences."""
TRAINED: tuple[str, ...] = get_args(Trained)
MODES: tuple[str, ...] = get_args(Mode)
OBJECTIVES: tuple[str, ...] = get_args(Objective)
STARTS: tuple[str, ...] = get_args(Start)
# Default weights of each objective; explicit weights override single entries.
_WEIGHTS: Mapping[str, Mapping[str, float]] = {"distill": {}, "ce": {"hidden": 0.0, "ce": 1.0, "kl": 0.0}}


@dataclass(frozen=True)
class HealOptions:
    """What to train, on which data, and for how long.

    Make it with `HealOptions.for_objective`, which sets the loss weights of the objective. The defaults are those of
    the CURing paper (arXiv 2501.04211, section 4).

    Attributes:
        objective: `distill` matches the original on plain text; training stops when KL on the held-out sequences stops
            falling. `ce` learns a task from a JSONL file; training stops when the held-out cross-entropy stops falling.
        train: `u` trains the linking factors (U of `cur`, T of `interpolative`). `u+norms` also trains the norm scales.
        mode: `whole` trains the whole model on hidden states and logits. `blocks` trains one decoder block at a time on
            the output of the original block, with one block in memory.
        start: `als` first initializes the linking factors by least squares, block by block. `none` starts from the
            artifact.
        hidden: Weight of the mean squared error of the hidden states. Unused with `blocks`.
        ce: Weight of the cross-entropy on the text, or on the completions of a task. Unused with `blocks`.
        kl: Weight of KL(original ‖ healed), in nats per token. Unused with `blocks`.
        steps: Maximum optimizer steps; with `blocks`, for each block. May be 0 with the start `als`.
        batch: Sequences per step.
        accumulate: Number of parts to split each batch into. More parts need less memory; the gradient is the same.
        learning_rate: Peak learning rate, reached after `warmup` steps, followed by cosine decay.
        warmup: Steps over which the learning rate rises linearly.
        evaluate_every: Steps between evaluations on the held-out sequences. Each one also saves the state.
        patience: Stop after this number of evaluations without improvement.
        checkpointing: Recompute activations in the backward pass: less memory, more time.
        data: The text or the task. Its probe sequences are held out.
        seed: Seed of the order of the sequences.

    Raises:
        InputError: A number is out of range, all loss weights are 0, or the data do not fit the objective.
    """

    objective: Objective = "distill"
    train: Trained = "u"
    mode: Mode = "whole"
    start: Start = "none"
    hidden: float = 0.9
    ce: float = 0.1
    kl: float = 0.0
    steps: int = 2000
    batch: int = 16
    accumulate: int = 1
    learning_rate: float = 3e-4
    warmup: int = 100
    evaluate_every: int = 50
    patience: int = 5
    checkpointing: bool = False
    data: CalibrationOptions = field(default_factory=lambda: CalibrationOptions(sequences=SEQUENCES))
    seed: int = 0

    @classmethod
    def for_objective(cls, objective: str | None = None, **values: Any) -> HealOptions:
        """Return the options of an objective, with the given values replaced. None means the default value."""
        objective = "distill" if objective is None else objective
        given = {name: value for name, value in values.items() if value is not None}
        return cls(**{"objective": objective, **_WEIGHTS.get(objective, {}), **given})

    def __post_init__(self) -> None:
        for name, choices in (("objective", OBJECTIVES), ("train", TRAINED), ("mode", MODES), ("start", STARTS)):
            one_of(f"--{name}", getattr(self, name), choices)
        for name in ("hidden", "ce", "kl"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"--{name} {value}: expected a number of at least 0")
        if self.hidden + self.ce + self.kl == 0:
            raise InputError("--hidden, --ce and --kl are all 0: give at least one of them a weight above 0")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InputError(f"--learning-rate {self.learning_rate}: expected a number above 0")
        for name, least in (
            ("steps", 0 if self.start == "als" else 1), ("batch", 1), ("accumulate", 1), ("warmup", 0),
            ("evaluate_every", 1), ("patience", 1), ("seed", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: expected at least {least}")
        if self.batch % self.accumulate:
            raise InputError(f"--accumulate {self.accumulate}: expected a divisor of --batch {self.batch}")

        if self.objective == "ce":
            self._check_task()

    def _check_task(self) -> None:
        if self.start != "none":
            raise InputError(f"--start {self.start}: fits the original's outputs; leave it out with --objective ce")
        if self.mode != "whole":
            raise InputError(f"--mode {self.mode}: --objective ce trains the whole model; use --mode whole")
        if not self.data.source.endswith(".jsonl"):
            raise InputError(
                f"--data {self.data.source}: --objective ce takes a .jsonl file, a task's lines "
                '{"prompt": …, "completion": …} or {"text": …}'
            )

    @property
    def needs_original(self) -> bool:
        """Whether the losses or the evaluation use the original."""
        return self.objective == "distill" or self.hidden > 0 or self.kl > 0

    def to_json(self) -> dict[str, Any]:
        """Return the options that the manifest records. It records the text by its tokens."""
        values = asdict(self)
        del values["data"]
        return values
