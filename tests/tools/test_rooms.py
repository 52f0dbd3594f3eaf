"""The rooms: an import that goes where it may not is named, and the drawing is that of the imports."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def rooms(command: str, root: Path) -> subprocess.CompletedProcess[str]:
    """Run the tool on a tree, by the tree's own copy."""
    return subprocess.run(
        [sys.executable, str(root / "tools" / "rooms.py"), command], capture_output=True, text=True, check=False
    )


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of every source file and of the tool."""
    for tree in ("converter", "runtime", "schemas", "tools"):
        shutil.copytree(ROOT / tree, tmp_path / tree, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "docs").mkdir()
    return tmp_path


def plant(house: Path, path: str, code: str) -> None:
    """Append code to a file."""
    with (house / path).open("a", encoding="utf-8") as file:
        file.write(f"\n{code}\n")


def test_the_house_is_in_order() -> None:
    """No import of ours goes up, aside or in a circle."""
    result = rooms("check", ROOT)
    assert (result.returncode, result.stderr) == (0, "")


PLANTED = {
    "upwards": (
        "converter/curconvert/linalg/gram.py",
        "from curconvert.factorization.types import Factorization",
        "curconvert.linalg.gram imports curconvert.factorization.types: linalg may not import factorization",
    ),
    "sibling": (
        "converter/curconvert/training/loop.py",
        "from curconvert.resizing import cut",
        "curconvert.training.loop imports curconvert.resizing.cut: training may not import resizing",
    ),
    "lazy": (
        "converter/curconvert/base/names.py",
        "def f():\n    import curconvert.options.choices",
        "curconvert.base.names imports curconvert.options.choices: base may not import options",
    ),
    "typing only": (
        "runtime/curconvert_runtime/format/files.py",
        "if TYPE_CHECKING:\n    from ..serve.session import Session",
        "curconvert_runtime.format.files imports curconvert_runtime.serve.session: format may not import serve",
    ),
    "runtime to converter": (
        "runtime/curconvert_runtime/serve/text.py",
        "from curconvert.base.names import layer_of",
        "curconvert_runtime.serve.text imports curconvert.base.names: "
        "curconvert_runtime.serve may not import curconvert.base",
    ),
    "public name": (
        "converter/curconvert/jobs/plan.py",
        "from curconvert import convert",
        "curconvert.jobs.plan imports curconvert: jobs may not import curconvert",
    ),
}


@pytest.mark.parametrize("where", PLANTED)
def test_a_forbidden_import_is_named(house: Path, where: str) -> None:
    """One line says which module imports which."""
    path, code, line = PLANTED[where]
    plant(house, path, code)
    result = rooms("check", house)
    assert result.returncode == 1
    assert line in result.stderr.splitlines()


def test_a_circle_of_files_is_named(house: Path) -> None:
    """Two files of one room may not import each other."""
    for name, other in (("first", "second"), ("second", "third"), ("third", "first")):
        plant(house, f"converter/curconvert/base/{name}.py", f"from curconvert.base import {other}")
    result = rooms("check", house)
    start, *others = "curconvert.base.first", "curconvert.base.second", "curconvert.base.third"
    assert (result.returncode, result.stderr) == (1, " imports ".join([start, *others, start]) + ": a circle\n")


def test_a_room_must_have_its_place_in_the_order(house: Path) -> None:
    """A new room and a room that is gone are both errors."""
    (house / "converter" / "curconvert" / "selection").rename(house / "converter" / "curconvert" / "choosing")
    result = rooms("check", house)
    assert result.stderr.splitlines()[:2] == [
        "curconvert.choosing: ORDER does not say where this room lies",
        "curconvert.selection: ORDER names this room, but it is gone",
    ]


def test_a_wide_function_is_named(house: Path) -> None:
    """Nine parameters are too many; self is none of them, and the command line may have as many as it has options."""
    eight, nine = "a, b, *, c, d, e, f, g, h", "a, /, b, *c, d, e, f, g, h, **i"
    (house / "converter/curconvert/base/wide.py").write_text(
        f"class A:\n    def narrow(self, {eight}): ...\n    async def wide(self, {nine}): ...\n", encoding="utf-8"
    )
    (house / "converter/curconvert/cli/wide.py").write_text(f"def wide({nine}): ...\n", encoding="utf-8")
    result = rooms("width", house)
    assert result.returncode == 1
    named = [line for line in result.stderr.splitlines() if "wide.py" in line]
    assert named == ["converter/curconvert/base/wide.py:3: wide has 9 parameters, more than 8"]


def drawing(root: Path) -> str:
    """The drawing of a tree."""
    return (root / "docs" / "architecture.svg").read_text(encoding="utf-8")


def test_the_drawing_is_that_of_the_imports(house: Path) -> None:
    """What stands in docs is what the imports give now."""
    assert rooms("draw", house).returncode == 0
    assert drawing(house) == drawing(ROOT), "the imports have changed: run `python tools/rooms.py draw`"


def test_the_drawing_shows_an_import(house: Path) -> None:
    """A room that starts to import another one has one dot more."""
    rooms("draw", house)
    before = drawing(house).count("<circle")
    plant(house, "converter/curconvert/families/heads.py", "import curconvert.journal.store")
    rooms("draw", house)
    assert drawing(house).count("<circle") == before + 1
