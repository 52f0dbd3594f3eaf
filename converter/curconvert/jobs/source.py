"""Opens a checkpoint."""

from __future__ import annotations

from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.types import Checkpoint
from curconvert.options.source import SourceOptions


def open_source(source: SourceOptions) -> Checkpoint:
    """Return the opened checkpoint.

    Raises:
        CurConvertError: It cannot be read, or its kind is not supported.
    """
    return open_checkpoint(
        source.model,
        config=source.config,
        config_set=source.config_set,
        revision=source.revision,
        ignore=source.ignore,
        base=source.base,
    )
