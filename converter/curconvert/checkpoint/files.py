"""Decides which files of a model folder may be read, and reads JSON strictly.

All file names from a model folder (shards, tokenizer files) go through `ModelFolder.regular`. So curconvert never opens
a file outside the folder, a file that could block (a FIFO), or a pickle.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curconvert.base.errors import InputError
from curconvert.checkpoint.stand_ins import text_stand_in
from curconvert_schemas import strict
from curconvert_schemas.folder import link_boundary

CONFIG_LIMIT = 250_000  # a config has a few kilobytes; copies need ten times the memory of its text


@dataclass(frozen=True)
class ModelFolder:
    """A folder of model files, with the boundary that symbolic links must not leave.

    Attributes:
        path: The folder.
        root: Resolved boundary, see `link_boundary`.
    """

    path: Path
    root: Path

    @classmethod
    def at(cls, path: Path) -> ModelFolder:
        """Return the folder `path` with its boundary."""
        return cls(path, link_boundary(path.resolve()))

    def regular(self, name: str) -> Path | None:
        """Return the path of the file `name` in this folder, or None if it does not exist.

        Raises:
            InputError: It is outside the folder or is not a regular file.
        """
        path = self.path / name
        if not path.exists() and not path.is_symlink():
            return None
        try:
            inside = path.resolve().is_relative_to(self.root)
        except (OSError, RuntimeError) as error:
            raise InputError(f"{path}: {' '.join(str(error).split())}") from None
        if not inside:
            raise InputError(f"{path}: a link to a file outside the model's folder; replace the link with the file")
        return regular_file(path)


def regular_file(path: Path) -> Path:
    """Return `path` if it is a regular file. This does not open it, because opening a FIFO blocks.

    Raises:
        InputError: It does not exist, is not accessible, or is no regular file.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise InputError(f"{path}: expected a file, this is {kind}")
    return path


def load_json_object(path: Path, limit: int = CONFIG_LIMIT) -> dict[str, Any]:
    """Return the JSON object in a regular file of at most `limit` bytes, parsed strictly."""
    size = regular_file(path).stat().st_size
    if size > limit:
        raise InputError(f"{path}: {size} bytes, expected a JSON file of at most {limit}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    return json_object(content, path)


def json_object(content: bytes, where: object) -> dict[str, Any]:
    """Return the JSON object in a file's content, parsed strictly; `where` names the file in errors."""
    try:
        value = strict.loads(content)
    except ValueError as error:
        reason = text_stand_in(where) if isinstance(where, Path) else None
        raise InputError(f"{where}: {reason or f'not valid JSON: {error}'}") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value
