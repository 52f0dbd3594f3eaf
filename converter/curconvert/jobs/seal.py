"""Verifies a finished folder and writes its manifest and reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curconvert.artifact.card import write_reports
from curconvert.artifact.manifest import seal
from curconvert.jobs.verify import verify_artifact
from curconvert_runtime.checks.fidelity import Progress
from curconvert_runtime.checks.report import VerificationReport
from curconvert_runtime.checks.verification import VerifyOptions


def verify_and_seal(
    work: Path, manifest: dict[str, Any], verification: VerifyOptions | None, progress: Progress
) -> VerificationReport | None:
    """Verify the finished artifact and write the measured fidelity into its manifest and reports."""
    write_reports(work, manifest)
    seal(work, manifest)
    if verification is None:
        return None
    report = verify_artifact(work, verification, progress=progress)
    report.raise_for_failures()
    measured = report.to_json()["fidelity"]
    write_reports(work, manifest | {"metrics": measured})
    seal(work, manifest | {"metrics": measured})
    return report
