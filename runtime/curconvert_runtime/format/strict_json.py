"""Parses JSON files that may be hostile: limits size and nesting, rejects duplicate keys and infinite numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from curconvert_runtime.errors import IntegrityError, reading

MAX_BYTES = 16 * 2**20
MAX_DEPTH = 100  # model files need far less; copying or printing a value overflows the stack only far above


def _pairs(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {repeated[:80]!r} appears twice")
    return result


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"number {text[:40]} is out of range")
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        parts = (part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list))
        level = [child for part in parts for child in part if isinstance(child, dict | list)]
        if not level:
            return
    raise ValueError("nested too deeply")


def loads(text: str | bytes) -> Any:
    """Return the parsed JSON value. Reject what parsers treat differently: duplicate keys, NaN, Infinity, deep nesting.

    Raises:
        ValueError: Not UTF-8, not JSON, or one of these.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_pairs, parse_float=_finite, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _check_depth(value)
    return value


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
