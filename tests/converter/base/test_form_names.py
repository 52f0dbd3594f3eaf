"""Forms are asked, not compared: the three registries agree, and no other code tells forms apart by their names."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from curconvert.base.roles import MODULAR, SPARSE
from curconvert.blocks.linears import LINEARS
from curconvert.blocks.linears.factored import FactoredLinear
from curconvert.families.family import linear_name
from curconvert.graph.forms import EMITTERS
from curconvert_runtime.format import vectors
from curconvert_runtime.format.forms import FORMS

ROOT = Path(__file__).parents[3]
OWN = ("format/forms/", "blocks/linears/", "graph/forms/")
"""Rooms of the forms themselves."""
PARTS = ("modular_", "sparse_", "_rows", "_columns")
MATCHES = ("startswith", "endswith", "removeprefix", "removesuffix")


def texts(node: ast.AST) -> Iterator[str]:
    """Yield the texts that an expression is made of: itself, or the parts of a tuple, list, set or dict."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        for part in node.elts:
            yield from texts(part)
    elif isinstance(node, ast.Dict):
        for part in (*node.keys, *node.values):
            if part is not None:
                yield from texts(part)


def names_asked_for(source: str) -> list[str]:
    """Return the names of forms that code compares with, and the parts of names that it looks for, with their lines."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            found += [(node.lineno, text) for part in (node.left, *node.comparators) for text in texts(part)]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr | ast.Sub):
            found += [(node.lineno, text) for part in (node.left, node.right) for text in texts(part)]
        elif isinstance(node, ast.MatchValue):
            found += [(node.lineno, text) for text in texts(node.value)]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MATCHES:
            found += [(node.lineno, text) for part in node.args for text in texts(part)]
    return [f"line {line}: {text}" for line, text in found if text in FORMS or text in PARTS]


@pytest.mark.parametrize(
    "line",
    [
        'form == "cur"',
        '"dense" != form',
        'form in ("interpolative", "sparse_rows")',
        'form in {"two_factor"}',
        'forms & {"cur"}',
        'found == {"q_proj": "interpolative"}',
        'form.startswith("modular_")',
        'form.startswith(("modular_", "sparse_"))',
        'form.endswith("_rows")',
        'match form:\n    case "modular_rows" | "cur":\n        pass',
    ],
)
def test_a_comparison_is_found(line: str) -> None:
    """What must not be there is seen where it is."""
    assert names_asked_for(line)


@pytest.mark.parametrize(
    "line",
    ['form_of("cur")', 'basis == "rows"', 'return {"form": "cur"}', 'name.endswith(".rows")', 'x = a or "dense"'],
)
def test_other_uses_are_not(line: str) -> None:
    """A method may name the form that it makes."""
    assert not names_asked_for(line)


def test_no_code_compares_with_a_forms_name() -> None:
    """What it wants to know is a field of the entry."""
    found = []
    for root in ("converter", "runtime"):
        for path in sorted((ROOT / root).rglob("*.py")):
            place = path.relative_to(ROOT).as_posix()
            if not any(part in place for part in OWN):
                found += [f"{place}, {fault}" for fault in names_asked_for(path.read_text(encoding="utf-8"))]
    assert not found


def test_every_form_has_a_linear_and_an_emitter() -> None:
    """A dense matrix is the template's own in a graph."""
    assert LINEARS.keys() == FORMS.keys()
    assert EMITTERS.keys() == {name for name, form in FORMS.items() if form.is_compressed}
    assert all(form.name == name for name, form in FORMS.items())
    linears = {name: linear for name, linear in LINEARS.items() if isinstance(linear, type)}
    assert len(linears) == 5
    for name, linear in linears.items():
        assert issubclass(linear, FactoredLinear)
        assert linear.form is FORMS[name]


def test_modules_are_made_of_forms() -> None:
    """An MLP's linears are stored together; an attention's get smaller each by itself."""
    assert all(FORMS[form].joint for form in MODULAR.values())
    assert all(FORMS[form].kept and not FORMS[form].joint for form in SPARSE.values())
    assert {form.name for form in FORMS.values() if form.kept} == {*MODULAR.values(), *SPARSE.values()}
    assert {linear_name(role): form for role, form in MODULAR.items()} == vectors.MODULAR  # which the runtime checks
