"""Manages the working folder of a run that can be resumed; it stays after an interruption."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from curconvert.artifact.folder import missing_parents
from curconvert.artifact.lock import ARTIFACT, clear, locked, remove, resumable, workspace_of
from curconvert.base.errors import InputError, IntegrityError, UnsupportedError, VerificationError
from curconvert.journal.store import Journal

__all__ = ["RESUME", "Workspace", "workspace", "workspace_of"]

RESUME = "run the same command again to continue"


@dataclass(frozen=True)
class Workspace:
    """Parts of the working folder of one output.

    Attributes:
        artifact: Folder that becomes the output.
        evidence: Folder with results of the passes over the original.
        journal: Record of the finished steps.
    """

    artifact: Path
    evidence: Path
    journal: Journal


@contextmanager
def workspace(out: Path, fingerprint: Mapping[str, str], *, resume: bool, needed: int = 1) -> Iterator[Workspace]:
    """Lock the working folder and yield its parts: those of an unfinished run, or empty ones.

    The folder is deleted when the context ends. It stays after an interruption or a system error, so that the next
    run can resume.

    Args:
        out: The output.
        fingerprint: What the output's bytes depend on, by name.
        resume: Resume an unfinished run; otherwise delete its work.
        needed: About how many bytes the run has on disk at once.

    Raises:
        InputError: Another run is writing this output, or the unfinished run has another fingerprint.
        DiskFullError: The disk is full.
    """
    created = missing_parents(out)
    with locked(out, needed) as folder:
        space = _open(folder, fingerprint, resume)
        try:
            yield space
        except (InputError, UnsupportedError, VerificationError, IntegrityError):
            remove(folder, created)  # running the same command again would fail in the same way
            raise
        remove(folder, created)


def _open(folder: Path, fingerprint: Mapping[str, str], resume: bool) -> Workspace:
    artifact, evidence = folder / ARTIFACT, folder / "evidence"
    if resume and resumable(folder):
        return Workspace(artifact, evidence, Journal.open(folder, fingerprint))
    clear(folder)
    artifact.mkdir()
    evidence.mkdir()
    return Workspace(artifact, evidence, Journal.create(folder, fingerprint))
