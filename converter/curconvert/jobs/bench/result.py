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
    """Summary of a number that each round measures.

    Attributes:
        median: Median of the rounds.
        min: Smallest value. Minimum and maximum show how much other programs disturbed the run.
        max: Largest value.
    """

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return the summary of the rounds' values."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Side:
    """One of the measured models, which runs in its own process.

    Attributes:
        name: The folder or checkpoint that the user named.
        graph: The graph that ran.
        weight_bytes: Bytes of weights that a decoding step reads from memory.
        load_seconds: Time to check the folder and create the session, with the files in the system's cache.
        start_seconds: Time from the start of the process to the first token of the shortest prompt.
        resident_bytes: Resident memory after loading; None if the system does not report it.
        peak_bytes: Peak resident memory at the end of the run; None if the system does not report it.
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
        first_token: Seconds from the prompts to the first token of each row.
        decode: Tokens per second after the first, all rows together.
        bytes_per_token: Bytes of weights and cache that a decoding step reads, divided by the rows.
        bandwidth_share: Bytes that decoding reads per second, divided by the measured read bandwidth; None on CUDA.
    """

    prefill: Spread
    first_token: Spread
    decode: Spread
    bytes_per_token: float
    bandwidth_share: float | None


@dataclass(frozen=True)
class Ratios:
    """Speed of the artifact divided by the other model's, round by round.

    Attributes:
        prefill: Ratio of prompt tokens per second.
        decode: Ratio of decoded tokens per second.
        predicted_decode: The other model's bytes per token divided by the artifact's.
    """

    prefill: Spread
    decode: Spread
    predicted_decode: float


@dataclass(frozen=True)
class Row:
    """Results of one workload.

    Attributes:
        workload: Batch size, prompt length and number of generated tokens.
        artifact: Speed of the artifact.
        against: Speed of the other model, if there is one.
        ratios: The artifact's speed divided by the other model's.
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
