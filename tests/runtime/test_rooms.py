"""Imports inside the runtime go one way: format, then serve, then checks; no two modules need each other."""

from __future__ import annotations

import ast
from pathlib import Path

import curconvert_runtime

HOME = Path(curconvert_runtime.__file__).parent
ROOMS = ("format", "serve", "checks")
BELOW = ("errors", "version")  # what every room may import


def imports(path: Path) -> set[str]:
    """Return the package's modules that a module imports, lazily or for types alone as well, without the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("curconvert_runtime"):
            module = node.module.removeprefix("curconvert_runtime").removeprefix(".")
            parts = [f"{module}.{alias.name}".lstrip(".") for alias in node.names]
            found |= {part if (HOME / f"{part.replace('.', '/')}.py").exists() else module for part in parts}
    return found


GRAPH = {
    str(path.relative_to(HOME).with_suffix("")).replace("/", "."): imports(path)
    for path in HOME.rglob("*.py")
    if path.name != "__init__.py"
}


def test_no_room_imports_one_above() -> None:
    """The package itself is above all: nothing imports it."""
    assert len(GRAPH) > 30
    for module, needed in GRAPH.items():
        room = module.partition(".")[0]
        allowed = set() if room in BELOW else {*BELOW, *ROOMS[: ROOMS.index(room) + 1]}
        assert {name.partition(".")[0] for name in needed} <= allowed, module


def test_no_two_modules_need_each_other() -> None:
    """Modules can be taken away one by one, each when nothing it needs is left."""
    left = dict(GRAPH)
    while left:
        free = [module for module, needed in left.items() if not needed & left.keys()]
        assert free, f"a circle among {sorted(left)}"
        for module in free:
            del left[module]
