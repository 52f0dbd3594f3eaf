"""The table of methods in the docs is rendered from the registry."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from curconvert.methods.core.registry import methods
from support.tools import load_tool

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """The script."""
    return load_tool("methods_table")


def test_the_page_has_the_registrys_table(tool: ModuleType) -> None:
    """And a row for every method."""
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert tool.rendered(page) == page
    assert all(f"\n| `{name}` |" in page for name in methods())


def test_another_table_is_noticed(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--check` fails, and the script mends it."""
    page = tmp_path / "methods.md"
    page.write_text(f"before\n{tool.START}\nold\n{tool.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(tool, "PAGE", page)
    assert tool.main(["--check"]) == 1
    assert tool.main([]) == 0
    assert tool.main(["--check"]) == 0
    assert page.read_text(encoding="utf-8").startswith("before\n")
