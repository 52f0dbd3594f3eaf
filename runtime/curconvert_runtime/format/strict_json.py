"""JSON for files that may be hostile: bounded, finite numbers only, no duplicate keys, no runaway nesting."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from curconvert_runtime.errors import IntegrityError, reading

MAX_BYTES = 16 * 2**20
MAX_DEPTH = 100  # far above any model file, and far below where copying or printing a value overflows the stack


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
    """Parse JSON, refusing what readers disagree on: duplicate keys, NaN, Infinity, huge numbers, deep nesting.

    Raises:
        ValueError: Not UTF-8, or not such JSON.
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
    """Parse a JSON object.

    Raises:
        IntegrityError: Refused by `loads`, or not an object; `where` names the file, and the part of it.
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
    """Read a JSON object from a file of at most `limit` bytes.

    Raises:
        IntegrityError: Unreadable, larger than the limit, or refused by `parse`.
    """
    with reading(path), path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise IntegrityError(f"{path}: larger than the {limit} bytes allowed for this file")
    return parse(data, str(path))
