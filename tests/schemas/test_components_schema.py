"""The schema of components.json: sound and closed."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from curconvert_schemas import SchemaError, load_schema, validate

MODULE = {"forms": {"model.layers.0.self_attn.q_proj.weight": "interpolative"}, "sizes": [16, 8], "costs": [0.1, 1.0]}


def test_the_schema_is_a_valid_schema_and_takes_a_sound_document() -> None:
    """It conforms to draft 2020-12 itself."""
    Draft202012Validator.check_schema(load_schema("components-1.0"))
    validate({"schema": "components-1.0", "modules": [MODULE, {**MODULE, "sizes": [], "costs": []}]}, "components-1.0")


@pytest.mark.parametrize(
    "change",
    [
        {"sizes": [0]},
        {"sizes": [8.5]},
        {"costs": [-1.0]},
        {"forms": {}},
        {"forms": {"x.bias": "interpolative"}},
        {"forms": {"x.weight": "cur"}},
        {"more": 1},
    ],
)
def test_a_departure_is_refused(change: dict[str, Any]) -> None:
    """Sizes, costs, names, forms, unknown fields."""
    with pytest.raises(SchemaError):
        validate({"schema": "components-1.0", "modules": [{**MODULE, **change}]}, "components-1.0")


@pytest.mark.parametrize("change", [{"schema": "components-2.0"}, {"modules": []}, {"more": 1}])
def test_a_departure_of_the_whole_is_refused(change: dict[str, Any]) -> None:
    """Versions, no module at all, unknown fields."""
    with pytest.raises(SchemaError):
        validate({"schema": "components-1.0", "modules": [MODULE], **change}, "components-1.0")
