"""Options of `heal`: which tensors to train, on which losses, for how long."""

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
    """Says how to heal, as in CURing; the defaults are the paper's (arXiv 2501.04211, section 4).

    Build it with `HealOptions.for_objective`, which fills in the objective's weights.

    Attributes:
        objective: `distill`: train towards the original, on running text; the held-out divergence decides when training
            ends. `ce`: train on a task, from the lines of a JSONL file (`curconvert.training.examples`); the held-out
            cross-entropy decides when training ends.
        train: `u`: the linking factors (U of `cur`, T of `interpolative`); `u+norms`: also the norms' scales.
        mode: `whole`: the whole model, towards the original's hidden states and logits; `blocks`: each decoder block on
            its own, towards the original block's output, with one block in memory.
        start: `als`: first one sweep of least squares over the linking factors, block by block, see
            `curconvert.training.start`; `none`: start from the conversion's factors.
        hidden: Weight of the mean squared error of the hidden states between blocks; unused with `blocks`.
        ce: Weight of the cross-entropy on the text, or on the completions of a task; unused with `blocks`.
        kl: Weight of KL(original ‖ healed), nats per token; unused with `blocks`.
        steps: Steps of the optimizer; for each block with `blocks`. With the start `als` it may be 0.
        batch: Sequences per step.
        accumulate: Number of parts in which a batch is computed, which saves memory; the gradient is the same sum.
        learning_rate: The highest rate, reached after `warmup` steps; it then falls along a cosine.
        warmup: Steps in which the rate rises linearly.
        evaluate_every: Steps between measurements on the held-out sequences, and between recorded states.
        patience: Measurements without an improvement after which training ends.
        checkpointing: Whether to recompute each block's activations in the backward pass instead of keeping them.
        data: The text, or the task; its probe sequences are held out.
        seed: Seed for the order of the sequences.

    Raises:
        InputError: A number is out of range, no loss has a weight, or the data do not fit the objective.
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
        """Return the options of an objective, with given values replaced; None means the default."""
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
        """Whether training or measuring needs the original model."""
        return self.objective == "distill" or self.hidden > 0 or self.kl > 0

    def to_json(self) -> dict[str, Any]:
        """Return the options for the manifest, without `data`: the manifest records the text by its tokens."""
        values = asdict(self)
        del values["data"]
        return values
