"""Decode speed of an artifact and its original, which take turns: what else the machine does then meets both."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from curconvert.jobs.bench.speed import measure
from curconvert.options.bench import Workload
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.serve.session import load

_PROMPT, _GENERATED = 32, 32  # fewer where the model's context is short
_ROUNDS = 5


@dataclass(frozen=True)
class DecodeSetup:
    """How decoding is measured: greedily, batch 1, on the CPU, with onnxruntime's own number of threads.

    Attributes:
        prompt_tokens: Length of the prompt, which is not timed.
        generated_tokens: Tokens that are timed, in each round.
        rounds: Timed rounds of each model; one more goes before them.
        graph: The graph that runs.
    """

    prompt_tokens: int
    generated_tokens: int
    rounds: int
    graph: Literal["fused", "portable"]

    @classmethod
    def of(cls, original: Artifact) -> DecodeSetup:
        """Fit the lengths to a model's context."""
        half = original.model["max_position_embeddings"] // 2
        return cls(
            min(_PROMPT, half), min(_GENERATED, half), _ROUNDS, "fused" if "fused" in original.graphs else "portable"
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"batch": 1, "provider": "cpu", **asdict(self)}


@dataclass(frozen=True)
class DecodeSpeed:
    """Tokens per second after the prompt, medians over rounds.

    Attributes:
        original: Of the original.
        compressed: Of the artifact, measured in turn with it.
        ratio: Compressed / original.
        ratio_min: Of the round in which it was least.
        ratio_max: Of the round in which it was greatest: the two tell how far a busy machine can be trusted.
    """

    original: float
    compressed: float
    ratio: float
    ratio_min: float
    ratio_max: float


def decode_speed(original: Path, compressed: Path, setup: DecodeSetup) -> DecodeSpeed:
    """Measure both; the model that begins a round changes from round to round.

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
