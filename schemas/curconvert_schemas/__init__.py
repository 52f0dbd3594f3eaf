"""JSON Schemas (draft 2020-12) of every document that curconvert writes, and one function to check against them.

A schema's name is its file name without `.schema.json`, version included: `manifest-1.0`.
"""

from __future__ import annotations

import functools
import json
from importlib import resources
from typing import Any

__all__ = ["SchemaError", "load_schema", "validate"]


class SchemaError(ValueError):
    """A document does not match its schema; the message is one line with the place and the reason."""


@functools.cache
def _text(name: str) -> str:
    return resources.files(__name__).joinpath(f"{name}.schema.json").read_text(encoding="utf-8")


def load_schema(name: str) -> dict[str, Any]:
    """Return a fresh copy of the schema called `name`.

    Raises:
        KeyError: No such schema is part of this package.
    """
    try:
        schema: dict[str, Any] = json.loads(_text(name))
    except FileNotFoundError:
        raise KeyError(name) from None
    return schema


@functools.cache
def _validator(name: str) -> Any:
    from jsonschema import Draft202012Validator  # noqa: PLC0415 - schemas alone need no third-party package

    return Draft202012Validator(load_schema(name))


def validate(instance: object, name: str) -> None:
    """Check a parsed JSON document.

    Args:
        instance: What `json.loads` returned.
        name: Schema to check against.

    Raises:
        SchemaError: The first mismatch, outermost place first.
    """
    errors = sorted(_validator(name).iter_errors(instance), key=lambda error: (len(error.path), str(error.path)))
    if errors:
        first = errors[0]
        reason = " ".join(str(first.message).split())
        raise SchemaError(f"{first.json_path}: {reason[:300]}")
