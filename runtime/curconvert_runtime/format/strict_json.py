"""Reads JSON files that may be hostile: bounds their size, and names the file in every error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from curconvert_runtime.errors import IntegrityError, reading
from curconvert_schemas.strict import loads

MAX_BYTES = 16 * 2**20


def parse(data: bytes, where: str) -> dict[str, Any]:
    """Return the parsed JSON object.

    Raises:
        IntegrityError: `loads` rejects the text, or it is not an object; `where` names the file and part.
    """
    try:
        value = loads(data)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise IntegrityError(f"{where}: not valid JSON ({reason}); get the file again from its source") from None
    if not isinstance(value, dict):
        raise IntegrityError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def read(path: Path, limit: int = MAX_BYTES) -> dict[str, Any]:
    """Return the JSON object in a file of at most `limit` bytes.

    Raises:
        IntegrityError: Unreadable, larger than the limit, or rejected by `parse`.
    """
    with reading(path), path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise IntegrityError(f"{path}: larger than the {limit} bytes allowed for this file")
    return parse(data, str(path))
