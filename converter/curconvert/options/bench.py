"""Options of `bench`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from curconvert.base.checks import at_least, one_of
from curconvert_runtime.errors import InputError
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.serve.providers import PROVIDERS

GRAPHS = ("auto", "fused", "portable")


@dataclass(frozen=True)
class BenchOptions:
    """Which requests to time.

    Attributes:
        prompt_tokens: Prompt lengths, in tokens.
        generated_tokens: Tokens to time after the first one, for each row.
        batches: Batch sizes. Each one runs with each prompt length.
        rounds: Timed rounds, after one round of warm-up.
        threads: Threads of onnxruntime and of the bandwidth measurement. None is onnxruntime's default for the first
            and all CPUs for the second.
        graph: `auto` takes the fused graph if the artifact has one; or `fused`, `portable`.
        provider: Execution provider, `cpu` or `cuda`.

    Raises:
        InputError: A value is out of range, unknown or repeated.
    """

    prompt_tokens: tuple[int, ...] = (128,)
    generated_tokens: int = 64
    batches: tuple[int, ...] = (1,)
    rounds: int = 5
    threads: int | None = None
    graph: str = "auto"
    provider: str = "cpu"

    def __post_init__(self) -> None:
        for option, values in (("--prompt-tokens", self.prompt_tokens), ("--batch", self.batches)):
            if not values:
                raise InputError(f"{option} is empty: give at least one value")
            if len(set(values)) < len(values):
                raise InputError(f"{option} {','.join(map(str, values))}: a value appears twice")
            for value in values:
                at_least(option, value, 1)
        at_least("--generated-tokens", self.generated_tokens, 1)
        at_least("--rounds", self.rounds, 1)
        if self.threads is not None:
            at_least("--threads", self.threads, 1)
        for option, choice, known in (("--graph", self.graph, GRAPHS), ("--provider", self.provider, PROVIDERS)):
            one_of(option, choice, known)

    @property
    def workloads(self) -> list[Workload]:
        """All pairs of batch size and prompt length, smallest batch first."""
        return [
            Workload(batch, length, self.generated_tokens)
            for batch in sorted(self.batches)
            for length in sorted(self.prompt_tokens)
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON."""
        return {
            "prompt_tokens": list(self.prompt_tokens),
            "generated_tokens": self.generated_tokens,
            "batches": list(self.batches),
            "rounds": self.rounds,
            "threads": self.threads,
            "graph": self.graph,
            "provider": self.provider,
        }


@dataclass(frozen=True)
class Workload:
    """Describes one request: rows of random tokens of equal length, continued greedily; no end token stops them.

    Attributes:
        batch: Rows.
        prompt_tokens: Length of each prompt.
        generated_tokens: Tokens after the first, for each row.
    """

    batch: int
    prompt_tokens: int
    generated_tokens: int

    def check_context(self, artifact: Artifact) -> None:
        """Reject a request that is longer than the model's context; raises InputError."""
        total, context = self.prompt_tokens + self.generated_tokens, artifact.model["max_position_embeddings"]
        if total > context:
            raise InputError(
                f"{self.prompt_tokens} prompt and {self.generated_tokens} generated tokens: the context of "
                f"{artifact.path} is {context}; ask for fewer"
            )
