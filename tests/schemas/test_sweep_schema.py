"""The sweep schema: sound, closed, and in step with the table's columns."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from curconvert.jobs.sweep.table import Point, Sweep
from curconvert_schemas import SchemaError, load_schema, validate

DECODE = {"batch": 1, "prompt_tokens": 32, "generated_tokens": 32, "rounds": 5, "graph": "fused", "provider": "cpu"}


def sweep_of(*points: Point) -> Sweep:
    return Sweep(Path("out"), "model", 100, 400, "text", DECODE, {"dtype": "float32"}, {"numpy": "2"}, points)


def test_the_schema_is_a_valid_schema() -> None:
    """It conforms to draft 2020-12 itself, and every column is required."""
    schema = load_schema("sweep-1.0")
    Draft202012Validator.check_schema(schema)
    point = schema["$defs"]["point"]
    names = [field.name for field in fields(Point)]
    assert point["required"] == list(point["properties"]) == names


def test_numbers_that_are_not_finite_become_null() -> None:
    """JSON has neither."""
    document = sweep_of(Point("auto", 0.9, kl_mean=float("nan"), perplexity_compressed=float("inf"))).to_json()
    assert document["points"][0]["kl_mean"] is document["points"][0]["perplexity_compressed"] is None
    validate(document, "sweep-1.0")


@pytest.mark.parametrize(
    "change", [{"schema": "sweep-2.0"}, {"points": []}, {"more": 1}, {"decode": {**DECODE, "batch": 2}}]
)
def test_a_departure_is_refused(change: dict[str, Any]) -> None:
    """Versions, missing points, unknown fields, other conditions."""
    with pytest.raises(SchemaError):
        validate({**sweep_of(Point("auto", 0.9)).to_json(), **change}, "sweep-1.0")


def test_a_share_outside_its_range_is_refused() -> None:
    """The whole model is no point."""
    with pytest.raises(SchemaError):
        validate(sweep_of(replace(Point("auto", 0.9), keep=1.0)).to_json(), "sweep-1.0")
