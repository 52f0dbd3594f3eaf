"""Holds the results of a sweep, as objects, CSV and JSON."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from curconvert_runtime.checks.metrics import Fidelity
from curconvert_runtime.errors import VerificationError
from curconvert_schemas import validate

SCHEMA = "sweep-1.0"
CSV, JSON, PLOT = "sweep.csv", "sweep.json", "sweep.png"


@dataclass(frozen=True)
class Point:
    """Results of one method at one size. Numbers are None if the point has no results.

    Attributes:
        method: Name of the method.
        keep: Requested share of the parameters.
        status: `ok`; `impossible`: the method has no such size; `failed`: the conversion or its verification failed.
        reason: Why the point is impossible or failed.
        parameters: Stored numbers.
        kept: Share of the parameters that is stored.
        bytes: Size of the weights' file.
        kl_exact: Whether KL covers the whole vocabulary; otherwise it is a lower bound.
        kl_mean: KL(original ‖ compressed), nats per token.
        kl_p99: Its 99th percentile.
        top1: Share of positions with the same most likely token.
        perplexity_original: Perplexity of the original on the text.
        perplexity_compressed: Perplexity of the compressed model.
        perplexity_ratio: perplexity_compressed / perplexity_original.
        decode_original: Tokens per second of the original, measured alternately with this point.
        decode_compressed: Tokens per second of the compressed model.
        decode_ratio: decode_compressed / decode_original, median over rounds.
        decode_ratio_min: Smallest ratio of a round.
        decode_ratio_max: Largest ratio of a round.
    """

    method: str
    keep: float
    status: str = "ok"
    reason: str | None = None
    parameters: int | None = None
    kept: float | None = None
    bytes: int | None = None
    kl_exact: bool | None = None
    kl_mean: float | None = None
    kl_p99: float | None = None
    top1: float | None = None
    perplexity_original: float | None = None
    perplexity_compressed: float | None = None
    perplexity_ratio: float | None = None
    decode_original: float | None = None
    decode_compressed: float | None = None
    decode_ratio: float | None = None
    decode_ratio_min: float | None = None
    decode_ratio_max: float | None = None

    @property
    def folder(self) -> str:
        """Name of the point's artifact."""
        return f"{self.method}-{self.keep:g}"

    def to_json(self) -> dict[str, Any]:
        """Return the point as JSON values; numbers that are not finite become null."""
        return {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }


def fidelity_fields(fidelity: Fidelity) -> dict[str, Any]:
    """Return a point's fidelity fields."""
    return {
        "kl_exact": fidelity.exact,
        "kl_mean": fidelity.kl.mean,
        "kl_p99": fidelity.kl.p99,
        "top1": fidelity.top1,
        "perplexity_original": fidelity.perplexity_original,
        "perplexity_compressed": fidelity.perplexity_compressed,
        "perplexity_ratio": fidelity.perplexity_ratio,
    }


@dataclass(frozen=True)
class Sweep:
    """The result of `sweep`: a published table and plot.

    Attributes:
        path: The folder.
        model: Name of the checkpoint.
        parameters_before: Parameters of the original.
        bytes_before: Size of the original's weights in its own dtype, in bytes.
        text: Description of the text on which fidelity was measured.
        decode: How decode speed was measured.
        options: Options that all conversions share.
        environment: Package versions and number of threads.
        points: Size, quality and speed of each method at each size, in the given order.
        notices: Notices for the user, one sentence each.
    """

    path: Path
    model: str
    parameters_before: int
    bytes_before: int
    text: str
    decode: Mapping[str, Any]
    options: Mapping[str, Any]
    environment: Mapping[str, str]
    points: tuple[Point, ...]
    notices: tuple[str, ...] = ()

    def raise_for_failures(self) -> None:
        """Raise if a point failed; an impossible size does not count.

        Raises:
            VerificationError: Names every failed point.
        """
        failed = [f"{point.folder} ({point.reason})" for point in self.points if point.status == "failed"]
        if failed:
            raise VerificationError(
                f"{self.path}: {len(failed)} of {len(self.points)} points failed: {'; '.join(failed)}"
            )

    def to_json(self) -> dict[str, Any]:
        """Return the sweep as JSON (schema `sweep-1.0`)."""
        return {
            "schema": SCHEMA,
            "model": {"name": self.model, "parameters": self.parameters_before, "bytes": self.bytes_before},
            "text": self.text,
            "decode": dict(self.decode),
            "options": dict(self.options),
            "environment": dict(self.environment),
            "points": [point.to_json() for point in self.points],
            "notices": list(self.notices),
        }


def write_tables(sweep: Sweep, folder: Path) -> None:
    """Write the CSV and the JSON; they do not name this machine."""
    document = sweep.to_json()
    validate(document, SCHEMA)
    (folder / JSON).write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    with (folder / CSV).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Point)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(document["points"])
