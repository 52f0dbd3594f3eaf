"""Measures decoding speed of an artifact and its original alternately, so that other load affects both alike."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from curconvert.jobs.bench.speed import measure
from curconvert.options.bench import Workload
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.serve.session import load

_PROMPT, _GENERATED = 32, 32  # fewer if the model's context is short
_ROUNDS = 5


@dataclass(frozen=True)
class DecodeSetup:
    """How decoding is measured: greedy, batch 1, on the CPU, with onnxruntime's default number of threads.

    Attributes:
        prompt_tokens: Length of the prompt, which is not timed.
        generated_tokens: Timed tokens per round.
        rounds: Timed rounds of each model, after one round that does not count.
        graph: The graph that runs.
    """

    prompt_tokens: int
    generated_tokens: int
    rounds: int
    graph: Literal["fused", "portable"]

    @classmethod
    def of(cls, original: Artifact) -> DecodeSetup:
        """Return the setup for a model, with lengths that fit its context."""
        half = original.model["max_position_embeddings"] // 2
        return cls(
            min(_PROMPT, half), min(_GENERATED, half), _ROUNDS, "fused" if "fused" in original.graphs else "portable"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the setup as JSON values."""
        return {"batch": 1, "provider": "cpu", **asdict(self)}


@dataclass(frozen=True)
class DecodeSpeed:
    """Tokens per second after the prompt, medians over rounds.

    Attributes:
        original: Speed of the original.
        compressed: Speed of the artifact.
        ratio: compressed / original.
        ratio_min: Smallest ratio of a round. Minimum and maximum show how much other programs disturbed the run.
        ratio_max: Largest ratio of a round.
    """

    original: float
    compressed: float
    ratio: float
    ratio_min: float
    ratio_max: float


def decode_speed(original: Path, compressed: Path, setup: DecodeSetup) -> DecodeSpeed:
    """Measure both models alternately; they also take turns in beginning a round.

    Args:
        original: Folder of the exported original.
        compressed: Folder of the artifact.
        setup: Lengths, rounds and graph.
    """
    sessions = [load(folder, graph=setup.graph) for folder in (original, compressed)]
    workload = Workload(1, setup.prompt_tokens, setup.generated_tokens)
    rates: list[list[float]] = [[], []]
    for turn in range(setup.rounds + 1):
        for which in ((0, 1), (1, 0))[turn % 2]:
            timing = measure(sessions[which], workload)
            if turn > 0:
                rates[which].append(setup.generated_tokens / timing.decode)
    ratios = [ours / theirs for theirs, ours in zip(*rates, strict=True)]
    before, after = (statistics.median(side) for side in rates)
    return DecodeSpeed(before, after, statistics.median(ratios), min(ratios), max(ratios))
