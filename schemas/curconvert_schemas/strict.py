"""Parses JSON text that may be hostile: limits nesting, rejects duplicate keys and infinite numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

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
