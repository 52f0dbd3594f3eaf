"""Strict JSON agrees with the standard library wherever it accepts, and refuses what invites trouble."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curconvert_runtime import IntegrityError
from curconvert_runtime.format import strict_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_sound_json_reads_as_usual(value: dict[str, object]) -> None:
    """Nothing is lost or changed."""
    assert strict_json.parse(json.dumps(value).encode(), "x") == value


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 1}',
        '{"a": {"b": 1, "b": 2}}',
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1e999}',
        '{"a": ' + "1" * 5000 + "}",
        "{} {}",
        "\ufeff{}",
        "null",
        '{"a": ' + "[" * 10**5 + "]" * 10**5 + "}",
        '{"a": ' + "[" * 100 + "]" * 100 + "}",
        '{"a": ' * 10**5,
    ],
)
def test_trouble_is_refused_in_one_line(text: str) -> None:
    """Duplicates, non-finite and endless numbers, trailing text and depth bombs."""
    with pytest.raises(IntegrityError) as caught:
        strict_json.parse(text.encode(), "file")
    assert str(caught.value).startswith("file: ")
    assert "\n" not in str(caught.value)


def test_a_large_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    """The limit holds before parsing."""
    (tmp_path / "f").write_bytes(b" " * 101)
    with pytest.raises(IntegrityError, match="larger than the 100 bytes"):
        strict_json.read(tmp_path / "f", limit=100)
