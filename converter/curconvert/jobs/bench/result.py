"""The result of `bench`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from curconvert.options.bench import BenchOptions, Workload
from curconvert_schemas import validate

SCHEMA = "bench-1.0"


@dataclass(frozen=True)
class Spread:
    """A number of each round.

    Attributes:
        median: Over the rounds.
        min: Of the rounds.
        max: Of the rounds: the two tell how far a busy machine can be trusted.
    """

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarize the rounds."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Side:
    """One model, in a process of its own.

    Attributes:
        name: What was asked for: a folder, or the checkpoint that was exported.
        graph: The graph that ran.
        weight_bytes: Weights that a step reads from memory.
        load_seconds: Checks of the folder and start of the session, with the files in the system's cache.
        start_seconds: From the start of the process to the first token of the shortest prompt.
        resident_bytes: Resident memory after loading; None where the system does not tell.
        peak_bytes: Most resident memory in the end.
    """

    name: str
    graph: str
    weight_bytes: int
    load_seconds: Spread
    start_seconds: Spread
    resident_bytes: int | None
    peak_bytes: int | None


@dataclass(frozen=True)
class Measured:
    """Speed of one model at one workload.

    Attributes:
        prefill: Prompt tokens per second, until the first tokens are chosen.
        first_token: Seconds until then.
        decode: Tokens per second after the first, of all rows together.
        bytes_per_token: What a step reads, weights and cache, for each row.
        bandwidth_share: What decoding reads per second, as a share of the measured read bandwidth; None without one.
    """

    prefill: Spread
    first_token: Spread
    decode: Spread
    bytes_per_token: float
    bandwidth_share: float | None


@dataclass(frozen=True)
class Ratios:
    """The artifact's speed over the other's, round by round.

    Attributes:
        prefill: Of prompt tokens per second.
        decode: Of decoded tokens per second.
        predicted_decode: The other's bytes per token over the artifact's.
    """

    prefill: Spread
    decode: Spread
    predicted_decode: float


@dataclass(frozen=True)
class Row:
    """One workload.

    Attributes:
        workload: What was asked.
        artifact: The artifact's speed.
        against: The other's, if there is one.
        ratios: How they compare.
    """

    workload: Workload
    artifact: Measured
    against: Measured | None
    ratios: Ratios | None


@dataclass(frozen=True)
class Bench:
    """The result of `bench`.

    Attributes:
        options: The options of the measurement.
        bandwidth: Bytes per second that one process reads from memory with the same threads; None on CUDA.
        artifact: Size, load time and memory of the artifact.
        against: The same for the other model; None without one.
        rows: Speed of each batch size and prompt length.
        environment: Package versions, machine type and number of CPUs.
    """

    options: BenchOptions
    bandwidth: Spread | None
    artifact: Side
    against: Side | None
    rows: tuple[Row, ...]
    environment: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON (schema `bench-1.0`)."""
        found = {"schema": SCHEMA, **asdict(self), "options": self.options.to_json()}
        found["rows"] = [{**asdict(row), "workload": asdict(row.workload)} for row in self.rows]
        validate(found, SCHEMA)
        return found
