"""Verify an artifact, with torch and the original if they are available."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from curconvert.base.errors import BackendError
from curconvert.options.source import SourceOptions, check_base
from curconvert_runtime.checks.fidelity import Progress
from curconvert_runtime.checks.report import Check, VerificationReport
from curconvert_runtime.checks.verification import VerifyOptions, verify
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.files import MANIFEST


def verify_artifact(
    artifact: Path,
    options: VerifyOptions,
    *,
    against: str | None = None,
    base: str | None = None,
    torch: bool | None = None,
    progress: Progress | None = None,
) -> VerificationReport:
    """Verify an artifact, with torch if it is installed.

    Args:
        artifact: An artifact folder.
        options: What to check and which limits to apply. The parameter `against` replaces `options.against`.
        against: The original: a folder from `export`, or a checkpoint. A checkpoint is exported to a temporary folder.
            Rows and columns in the factors are then compared with the checkpoint.
        base: The model that `against` changes, if that is an adapter.
        torch: Compare with transformers; None compares if it is installed.
        progress: Called with (stage, done, total).

    Returns:
        The report. It holds failed checks too; `raise_for_failures` raises them.

    Raises:
        CurConvertError: The folder, an option or the environment is wrong.
    """
    check_base(base, against)
    available = importlib.util.find_spec("torch") is not None and importlib.util.find_spec("transformers") is not None
    if torch and not available:
        raise BackendError("--torch: torch is not installed; run: pip install 'curconvert[convert]'")
    if against is None or (Path(against) / MANIFEST).is_file():
        chosen = replace(options, against=None if against is None else Path(against))
        report = verify(artifact, chosen, progress)
    else:
        report = _against_checkpoint(artifact, (against, base), options, progress)
    if available if torch is None else torch:
        from curconvert.jobs.parity import torch_parity

        report = _extended(report, torch_parity(artifact, options).checks)
    return report


def _against_checkpoint(
    artifact: Path, original: tuple[str, str | None], options: VerifyOptions, progress: Progress | None
) -> VerificationReport:
    if importlib.util.find_spec("torch") is None:
        raise BackendError(
            f"--against {original[0]}: comparing with a checkpoint needs torch; export it elsewhere with "
            "`curconvert export`, or run: pip install 'curconvert[convert]'"
        )
    from curconvert.jobs.export import export
    from curconvert.jobs.parity import check_slices
    from curconvert.jobs.source import open_source

    against, base = original
    ignore = tuple(Artifact.open(artifact).manifest["source"].get("ignore", ()))
    source = SourceOptions(against, ignore=ignore, base=base)
    slices = check_slices(artifact, open_source(source))
    with tempfile.TemporaryDirectory(prefix="curconvert-") as folder:
        exported = Path(folder) / "original"
        # float32 holds every stored value exactly.
        export(source, exported, dtype="float32")
        report = verify(artifact, replace(options, against=exported), progress)
    return _extended(report, slices)


def _extended(report: VerificationReport, checks: Iterable[Check]) -> VerificationReport:
    return replace(report, checks=(*report.checks, *checks))
