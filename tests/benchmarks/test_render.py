"""The pages show what the results hold, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import render
from benchmarks.cells import Table, cell
from benchmarks.common import RESULTS, Result

ROWS = [
    {"method": "a", "kept": 0.9, "kl": 0.25, "peak": 1_234_000_000},
    {"method": "a", "kept": 0.8, "kl": 0.5, "peak": 5},
    {"method": "b", "kept": 0.8, "kl": 12.0, "more": {"median": 1.5}},
]


@pytest.mark.parametrize("page", render.pages(), ids=lambda page: page.name)
def test_a_page_is_what_the_results_give(page: Path) -> None:
    """As `python -m benchmarks.render --check` finds it."""
    text = page.read_text(encoding="utf-8")
    assert render.rendered(text) == text, "run python -m benchmarks.render"


def test_every_table_and_every_result_is_on_a_page() -> None:
    """No figures that nobody sees."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in render.pages())
    assert [name for name in render.TABLES if f"<!-- table {name} -->" not in text] == []
    shown = {(table.result, table.part) for table in render.TABLES.values()}
    for file in RESULTS.glob("*.json"):
        assert {(file.stem, part) for part in json.loads(file.read_text(encoding="utf-8"))["tables"]} <= shown


def test_another_figure_changes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each digit of a cell comes from the results."""
    page = "<!-- table ordering -->\n| old |\n<!-- end -->\nRest."
    content = json.loads((RESULTS / "ordering.json").read_text(encoding="utf-8"))
    content["tables"]["rows"] = [
        {"numbers": 576, "tokens": 1, "gather": 0.001234, "elements": 0.000002, "faster": 9.87}
    ]
    (tmp_path / "ordering.json").write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr(render, "RESULTS", tmp_path)
    render._result.cache_clear()
    try:
        found = render.rendered(page)
    finally:
        render._result.cache_clear()
    assert "| 576 | 1 | 1234 | 2 | 9.9 |" in found
    assert "old" not in found
    assert found.endswith("<!-- end -->\nRest.")


def test_an_unknown_table_is_an_error() -> None:
    """A name that is misspelled must not leave old figures in a page."""
    with pytest.raises(KeyError, match="nothing"):
        render.rendered("<!-- table nothing -->\n<!-- end -->")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{kl:.3f}", "0.250"),
        ("{peak!M:,.0f} MB", "1,234 MB"),
        ("{peak!G:.1f}", "1.2"),
        ("{peak!F:,.0f}", "4,936"),
        ("{peak!H:,.0f}", "2,468"),
        ("{kept:.0%}", "90%"),
        ("{kl!p}", "0.25"),
        ("{peak!p}", "1.2e+09"),
        ("{kl} and {missing}", "–"),
        ("{method[missing]}", "–"),
    ],
)
def test_cells(template: str, text: str) -> None:
    """Scales, perplexities, and a dash for what was not measured."""
    row: dict[str, Any] = {**ROWS[0], "method": {}}
    assert cell(template, row) == text


def test_rows_of_one_method_become_one() -> None:
    """A column for each size, and a dash where a method has no figure."""
    table = Table("", "t", {"method": "{method}"}, across="{kept:.1f}", value="{kl:.2f}")
    lines = table.markdown({"t": ROWS}).splitlines()
    assert lines == ["| method | 0.9 | 0.8 |", "| --- | --- | --- |", "| a | 0.25 | 0.50 |", "| b | – | 12.00 |"]


def test_rows_are_sorted() -> None:
    """By a field, smallest first."""
    lines = Table("", "t", {"KL": "{kl:.2f}"}, by="kl").markdown({"t": ROWS[::-1]}).splitlines()
    assert lines[2:] == ["| 0.25 |", "| 0.50 |", "| 12.00 |"]


def test_rows_are_chosen() -> None:
    """By value, and by what they have; none at all is said."""
    assert "b" not in Table("", "t", {"m": "{method}"}, only={"kept": (0.9,)}).markdown({"t": ROWS})
    assert Table("", "t", {"m": "{more[median]}"}, needs="more").markdown({"t": ROWS}).endswith("| 1.5 |")
    assert Table("", "t", {"m": "{method}"}, needs="nowhere").markdown({"t": ROWS}) == "Not measured."


def test_a_result_keeps_what_is_of_the_same_setting(tmp_path: Path) -> None:
    """A row of the same key is replaced; figures of another setting do not stand beside new ones."""
    path = tmp_path / "out.json"
    first = Result(path, {"text": "x", "sizes": (1, 2)}, threads=1)
    first.add("rows", {"kl": 1.0}, method="a")
    first.add("rows", {"kl": 2.0}, method="b")
    again = Result(path, {"text": "x", "sizes": (1, 2)}, threads=1)
    assert again.find("rows", method="b") == {"method": "b", "kl": 2.0}
    again.add("rows", {"kl": 3.0}, method="a")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["tables"]["rows"] == [{"method": "a", "kl": 3.0}, {"method": "b", "kl": 2.0}]
    assert content["machine"]["threads"] == 1
    assert Result(path, {"text": "y", "sizes": (1, 2)}, threads=1).find("rows", method="b") is None
    assert Result(path, {"text": "x", "sizes": (1, 2)}, threads=2).find("rows", method="b") is None


def test_every_experiment_says_what_was_decided() -> None:
    """In one sentence at the end of its docstring; `mora` is a part of others."""
    scripts = {file.stem for file in render.EXPERIMENTS.glob("*.py")} - {"__init__", "mora"}
    decisions = {name: render.decision(name) for name in scripts}
    assert all(text.startswith("Decided: ") and text.endswith(".") for text in decisions.values()), decisions
