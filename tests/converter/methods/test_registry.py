"""The registry of methods: one module each, and nobody else asks which one it is."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import curconvert
from curconvert.methods.core.registry import methods
from curconvert_runtime.format.forms import FORMS

CONVERTER = Path(curconvert.__file__).parent
TEXTS = ("name", "stores", "summary")


@pytest.mark.parametrize("name", methods())
def test_a_method_says_what_it_is(name: str) -> None:
    """For messages and the table of the documentation; its module is found by its name."""
    method = methods()[name]
    assert all(isinstance(getattr(method, text), str) and getattr(method, text).strip() for text in TEXTS)
    assert "\n" not in method.stores + method.summary
    assert method.name == name
    assert method.__module__ == f"curconvert.methods.{name.replace('-', '_')}"
    assert dataclasses.is_dataclass(method)


def test_every_module_is_a_method() -> None:
    """And they are sorted by their names."""
    modules = {path.stem.replace("_", "-") for path in (CONVERTER / "methods").glob("*.py")} - {"--init--"}
    assert set(methods()) == modules
    assert list(methods()) == sorted(methods())


@pytest.mark.parametrize("name", methods())
def test_an_option_has_a_flag_of_its_own(name: str) -> None:
    """One flag means one thing in every method."""
    flags = {part.name: part.metadata["flag"] for method in methods().values() for part in dataclasses.fields(method)}
    assert len(set(flags.values())) == len(flags)
    for part in dataclasses.fields(methods()[name]):
        assert part.metadata["flag"] == flags[part.name]


def comparisons(tree: ast.AST) -> Iterator[tuple[int, list[ast.expr]]]:
    """Yield line and both sides of each comparison, `match` statements included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            yield node.lineno, [node.left, *node.comparators]
        elif isinstance(node, ast.Match):
            for case in node.cases:
                for part in ast.walk(case.pattern):
                    if isinstance(part, ast.MatchValue):
                        yield part.lineno, [node.subject, part.value]


def asks_for_a_method(sides: list[ast.expr]) -> bool:
    """Tell whether a comparison asks which method it deals with; a form may have a method's name."""
    words = {node.value for side in sides for node in ast.walk(side) if isinstance(node, ast.Constant)}
    names = {name for name in methods() if name in words}
    text = " ".join(ast.unparse(side) for side in sides)
    return "method.name" in text or bool(names - {*FORMS, "dense"}) or (bool(names) and "form" not in text)


def found(source: str, wanted: str) -> list[int]:
    """Return the lines of the comparisons that ask for a method, or for the form of options."""
    tree = ast.parse(source)
    if wanted == "method":
        return [line for line, sides in comparisons(tree) if asks_for_a_method(sides)]
    return [line for line, sides in comparisons(tree) if "options.form" in " ".join(map(ast.unparse, sides))]


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("if options.method.name == 'cur': pass", "method"),
        ("if method.name != other: pass", "method"),
        ("if name in ('pifa', 'row-id'): pass", "method"),
        ("if values['method'] == 'dense': pass", "method"),
        ("match kind:\n case 'x': pass\n case 'auto': pass", "method"),
        ("x = 1 if options.form == 'cur' else 2", "form"),
        ("if self.options.form in known: pass", "form"),
    ],
)
def test_a_planted_question_is_found(source: str, wanted: str) -> None:
    """The rule can fail; a matrix's form is no method."""
    assert found(source, wanted)
    assert not found("if matrix.form == 'cur' or row['form'] != 'dense' or name == 'model': pass", wanted)


def test_nobody_asks_which_method_it_is() -> None:
    """Outside the methods' own room."""
    paths = [path for path in CONVERTER.rglob("*.py") if path.parts[len(CONVERTER.parts)] != "methods"]
    assert len(paths) > 100
    assert {str(p): lines for p in paths if (lines := found(p.read_text(encoding="utf-8"), "method"))} == {}


def test_options_have_no_form() -> None:
    """Nor does a method ask for it."""
    paths = list(CONVERTER.rglob("*.py"))
    assert {str(p): lines for p in paths if (lines := found(p.read_text(encoding="utf-8"), "form"))} == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rank", "0"), "--rank 0: expected an integer of at least 1"),
        (("--method", "pifa", "--steps", "3"), "--steps 3: belongs to --method soco, not to pifa"),
        (("--keep", "0.9", "--quantize", "int2"), "--quantize 'int2'"),
    ],
)
def test_options_are_checked_without_torch(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    """A wrong one is refused at once: torch takes a second to import."""
    program = (
        "import sys\nfrom curconvert.cli import main\n"
        "try:\n    main(sys.argv[1:])\nfinally:\n    print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program, "convert", "x", "-o", str(tmp_path / "y"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stdout.strip() == "False"
