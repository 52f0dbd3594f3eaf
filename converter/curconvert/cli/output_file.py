"""A file that a command writes beside its output on the streams: refused before the work, complete after it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from curconvert.base.errors import BackendError, InputError
from curconvert.cli.options import FilePath


class OutputFile(FilePath):
    """A path of a file to write. Folders that are missing are made with the file; what cannot be written is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path after a check that a file can be written there."""
        path = super().convert(value, param, ctx)
        if path.is_dir():
            self.fail(f"{path}: is a folder; name a file", param, ctx)
        place = next(place for place in (path, *path.absolute().parents) if place.exists())
        if place != path and not place.is_dir():
            self.fail(f"{path}: {place} is a file, not a folder; choose another file", param, ctx)
        if not os.access(place, os.W_OK if place == path else os.W_OK | os.X_OK):
            self.fail(f"{path}: no permission to write {'it' if place == path else f'in {place}'}", param, ctx)
        return path


def write_file(path: Path, text: str, option: str) -> None:
    """Write a text as UTF-8, to a new file first, so that no half of it is found.

    Args:
        path: The file, as `OutputFile` checked it; a pipe or a device gets the text itself.
        text: What to write.
        option: The option that names the file, for messages.

    Raises:
        BackendError: The disk is full.
        InputError: The file cannot be written.
    """
    from curconvert.base.durable import disk_full, is_full, replace_text

    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, text)
    except OSError as error:
        if is_full(error):
            raise disk_full(path, len(text.encode())) from None
        kind = BackendError if isinstance(error, BrokenPipeError) else InputError
        raise kind(f"{option} {path}: cannot be written ({error.strerror})") from None
