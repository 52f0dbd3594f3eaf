"""The bench schema: sound, closed, and in step with the result's fields."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from curconvert.jobs.bench.result import Bench, Measured, Ratios, Row, Side, Spread
from curconvert.options.bench import BenchOptions, Workload
from curconvert_schemas import SchemaError, load_schema, validate

ONE = Spread(1.0, 0.5, 2.0)
SPEED = Measured(ONE, ONE, ONE, 10.0, 0.7)
SIDE = Side("out", "fused", 10, ONE, ONE, None, None)


def found(**changes: Any) -> Bench:
    row = Row(Workload(1, 4, 4), SPEED, SPEED, Ratios(ONE, ONE, 1.5))
    values = {"options": BenchOptions(), "bandwidth": ONE, "artifact": SIDE, "against": SIDE, "rows": (row,)}
    return Bench(**{**values, "environment": {"numpy": "2"}, **changes})


def test_the_schema_is_a_valid_schema() -> None:
    """It conforms to draft 2020-12 itself, and every field of the result is required."""
    schema = load_schema("bench-1.0")
    Draft202012Validator.check_schema(schema)
    for name, kind in (("side", Side), ("measured", Measured), ("row", Row)):
        assert schema["$defs"][name]["required"] == [field.name for field in fields(kind)]


@pytest.mark.parametrize("changes", [{}, {"bandwidth": None}, {"against": None}])
def test_a_result_is_written_as_the_schema_says(changes: dict[str, Any]) -> None:
    """With and without another model, and where no bandwidth was measured."""
    assert found(**changes).to_json()["schema"] == "bench-1.0"


@pytest.mark.parametrize("change", [{"schema": "bench-2.0"}, {"rows": []}, {"more": 1}, {"artifact": None}])
def test_a_departure_is_refused(change: dict[str, Any]) -> None:
    """Versions, missing rows, unknown fields, no artifact."""
    with pytest.raises(SchemaError):
        validate({**found().to_json(), **change}, "bench-1.0")
