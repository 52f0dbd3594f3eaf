"""Defines a recognized adapter: what it is, its files, and what it changes in the base model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curconvert.base.errors import InputError
from curconvert.checkpoint.adapters.changes import Change
from curconvert.checkpoint.source_files import SourceFiles

Changes = Mapping[str, Sequence[Change]]


@dataclass(frozen=True)
class Adapter:
    """An adapter that was recognized and not read yet.

    Attributes:
        path: The file or folder that the user named.
        files: The files that decide its weights.
        base_name: What it calls its base model; None if it does not say.
        changes: Returns the changes by the name of the base's tensor, in their order, from the base's config.
    """

    path: Path
    files: SourceFiles
    base_name: str | None
    changes: Callable[[Mapping[str, Any]], Changes]

    def needs_base(self) -> InputError:
        """Return the error for an adapter that was given in the place of a model."""
        trained = f"; it was trained on {self.base_name!r:.200}" if self.base_name else ""
        return InputError(
            f"{self.path}: a LoRA adapter, which changes a model and is none; pass --base with the model that it "
            f"changes{trained}"
        )
