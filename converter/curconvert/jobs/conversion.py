"""The result of a conversion."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from curconvert.base.plan import Plan
from curconvert_runtime.checks.report import VerificationReport


@dataclass(frozen=True)
class Conversion:
    """The result of `convert` or `export`: a published artifact.

    Attributes:
        path: The artifact folder.
        plan: Form and size of each matrix; None for an export.
        notices: Notices for the user, one sentence each.
        report: The verification report; None without verification.
        peak_memory_bytes: Peak resident memory of this process before verification; None if the system does not
            report it.
    """

    path: Path
    plan: Plan | None
    notices: tuple[str, ...]
    report: VerificationReport | None
    peak_memory_bytes: int | None
