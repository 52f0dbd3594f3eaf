"""Holds the JSON Schemas (draft 2020-12) of the documents that curconvert writes, and checks documents against them.

Beside them lie parsers of the formats themselves: `strict` (JSON), `protobuf`, `graph` (ONNX),
`tokenizer` (`tokenizer.json`) and `templates` (chat templates, which it also renders).
A schema's name is its file name without `.schema.json`, such as `manifest-1.0`.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

__all__ = ["SchemaError", "is_valid", "load_schema", "schema_text", "validate"]


class SchemaError(ValueError):
    """A document does not match its schema. The message is one line with the place and the reason."""


@functools.cache
def schema_text(name: str) -> str:
    """Return the schema called `name`, as JSON.

    Raises:
        KeyError: No such schema is part of this package.
    """
    # importlib.resources would work too, but takes longer to import than the rest of this package.
    try:
        return Path(__file__).with_name(f"{name}.schema.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        raise KeyError(name) from None


def load_schema(name: str) -> dict[str, Any]:
    """Return a fresh copy of the schema called `name`.

    Raises:
        KeyError: No such schema is part of this package.
    """
    schema: dict[str, Any] = json.loads(schema_text(name))
    return schema


@functools.cache
def _validator(name: str) -> Any:
    # Import here, so that reading schemas needs no third-party package.
    from jsonschema import Draft202012Validator  # noqa: PLC0415
    from jsonschema.validators import extend  # noqa: PLC0415

    # JSON Schema accepts 8.0 as an integer, but code that uses it as a dimension would fail later.
    types = Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    )
    return extend(Draft202012Validator, type_checker=types)(load_schema(name))


def validate(instance: object, name: str) -> None:
    """Check a parsed JSON document.

    Args:
        instance: The parsed document.
        name: Name of its schema.

    Raises:
        SchemaError: Names the outermost mismatch.
    """
    try:
        errors = sorted(_validator(name).iter_errors(instance), key=lambda error: (len(error.path), str(error.path)))
    except RecursionError:
        raise SchemaError("$: nested too deeply") from None
    if errors:
        first = errors[0]
        reason = " ".join(str(first.message).split())
        if first.validator == "not":
            reason = "not allowed here"
        elif "propertyNames" in first.schema_path:
            reason = f"the name {first.instance!r:.200} is not allowed"
        raise SchemaError(f"{first.json_path}: {reason[:300]}")


def is_valid(instance: object, name: str) -> bool:
    """Tell whether a parsed JSON document matches its schema."""
    return bool(_validator(name).is_valid(instance))
