"""Holds the result of a conversion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from curconvert.base.plan import Plan
from curconvert_runtime.checks.report import VerificationReport


@dataclass(frozen=True)
class Conversion:
    """A published artifact.

    Attributes:
        path: The folder.
        plan: What was compressed; None for an export.
        notices: What the user should know, one sentence each.
        report: The verification; None if it was not asked for.
        peak_memory_bytes: Most resident memory of this process before the verification; None where the system
            does not tell.
    """

    path: Path
    plan: Plan | None
    notices: tuple[str, ...]
    report: VerificationReport | None
    peak_memory_bytes: int | None
