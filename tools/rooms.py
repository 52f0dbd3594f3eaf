"""Check and draw the rooms: which package may import which.

`python tools/rooms.py check` fails if an import goes up, to a sibling, or in a circle.
`python tools/rooms.py width` fails if a function takes too many parameters.
`python tools/rooms.py draw` writes docs/architecture.svg.
Every import counts, even inside a function or under TYPE_CHECKING.
The script uses only the standard library.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
DRAWING = Path("docs", "architecture.svg")
SOURCES = ("converter", "runtime", "schemas")

# From top to bottom. Rooms in the same line are siblings: neither imports the other.
# A package's own name means its __init__ and __main__; every other flat module counts as a room.
ORDER = (
    ("curconvert",),
    ("curconvert.cli",),
    ("curconvert.jobs",),
    ("curconvert.estimate",),
    ("curconvert.methods",),
    ("curconvert.training", "curconvert.resizing"),
    ("curconvert.artifact",),
    ("curconvert.allocation",),
    ("curconvert.calibration",),
    ("curconvert.quantization",),
    ("curconvert.factorization",),
    ("curconvert.selection",),
    ("curconvert.graph",),
    ("curconvert.blocks",),
    ("curconvert.checkpoint",),
    ("curconvert.families",),
    ("curconvert.journal",),
    ("curconvert.execution",),
    ("curconvert.linalg",),
    ("curconvert.options",),
    ("curconvert.base",),
    ("curconvert_runtime",),
    ("curconvert_runtime.checks",),
    ("curconvert_runtime.serve",),
    ("curconvert_runtime.format",),
    ("curconvert_runtime.errors", "curconvert_runtime.version"),
    ("curconvert_schemas.client_settings",),
    ("curconvert_schemas",),
    ("curconvert_schemas.onnx_locations", "curconvert_schemas.folder"),
    ("curconvert_schemas.graph", "curconvert_schemas.protobuf_edits", "curconvert_schemas.tokenizer"),
    (
        "curconvert_schemas.strict",
        "curconvert_schemas.protobuf",
        "curconvert_schemas.templates",
        "curconvert_schemas.generation",
    ),
)
LEVEL = {room: level for level, siblings in enumerate(ORDER) for room in siblings}
MOST_PARAMETERS = 8


class Module(NamedTuple):
    """A parsed source file."""

    path: Path
    tree: ast.Module
    is_package: bool


def read_modules(root: Path) -> dict[str, Module]:
    """Return every module of the source trees under `root` by its dotted name."""
    modules = {}
    for source in SOURCES:
        for path in sorted((root / source).rglob("*.py")):
            parts = path.relative_to(root / source).with_suffix("").parts
            package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if package else parts)
            modules[name] = Module(path.relative_to(root), ast.parse(path.read_bytes()), package)
    return modules


def imports_of(name: str, modules: Mapping[str, Module]) -> set[str]:
    """Return the modules of this project that a module imports, at any place in its text."""
    found: set[str] = set()
    for node in ast.walk(modules[name].tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".") if modules[name].is_package else name.split(".")[:-1]
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                inside = f"{origin}.{alias.name}"
                found.add(inside if inside in modules else origin)
    return found & modules.keys() - {name}


def room_of(module: str) -> str:
    """Return the room of a module; for __init__ and __main__ it is the package's own name."""
    package, *rest = module.split(".")
    return package if not rest or rest[0] == "__main__" else f"{package}.{rest[0]}"


def order_errors(modules: Mapping[str, Module]) -> Iterator[str]:
    """Yield a line for each difference between ORDER and the rooms, and for each import of a room that is not below."""
    rooms = {room_of(name) for name in modules}
    yield from (f"{room}: ORDER does not say where this room lies" for room in sorted(rooms - LEVEL.keys()))
    yield from (f"{room}: ORDER names this room, but it is gone" for room in sorted(LEVEL.keys() - rooms))
    for name in modules:
        for target in sorted(imports_of(name, modules)):
            room, other = room_of(name), room_of(target)
            if {room, other} <= LEVEL.keys() and room != other and LEVEL[room] >= LEVEL[other]:
                yield f"{name} imports {target}: {_short(room, other)} may not import {_short(other, room)}"


def _short(room: str, beside: str) -> str:
    """Return the last part of a room's name, or its full name if the other room is in another package."""
    return room.rpartition(".")[2] if room.partition(".")[0] == beside.partition(".")[0] else room


def circle_errors(modules: Mapping[str, Module]) -> Iterator[str]:
    """Yield a line for each import that closes a circle of modules, found by a depth-first walk."""
    graph = {name: sorted(imports_of(name, modules)) for name in modules}
    done: set[str] = set()

    def walk(path: list[str]) -> Iterator[str]:
        for target in graph[path[-1]]:
            if target in path:
                yield " imports ".join([*path[path.index(target) :], target]) + ": a circle"
            elif target not in done:
                yield from walk([*path, target])
        done.add(path[-1])

    for name in graph:
        if name not in done:
            yield from walk([name])


def width_errors(modules: Mapping[str, Module]) -> Iterator[str]:
    """Yield a line for each function outside `cli` with more than MOST_PARAMETERS parameters, self not counted."""
    for name, module in modules.items():
        if room_of(name) == "curconvert.cli":
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = node.args
                every = [*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg]
                count = sum(1 for arg in every if arg and arg.arg not in ("self", "cls"))
                if count > MOST_PARAMETERS:
                    where = f"{module.path}:{node.lineno}"
                    yield f"{where}: {node.name} has {count} parameters, more than {MOST_PARAMETERS}"


# Pixels of the drawing, and the size of a dot by the number of imports.
STEP, TOP, LEFT, BOX = 23, 140, 158, 18
SIZES = ((20, 5.5), (5, 4), (1, 2.5))
COLORS = {"curconvert": "#1f5fa8", "curconvert_runtime": "#23783f", "curconvert_schemas": "#8a5a00"}
STYLE = """<style>
text{font:12px sans-serif;fill:#222}.in{fill:#fff}path{fill:none;stroke-width:1.3}.row,.name{stroke:#bbb;stroke-width:1}
.name{stroke-dasharray:1 3}
</style>"""
LEGEND = (
    "Each dot on the gray line of a room is its imports from the room whose arrow comes down through the dot.",
    "Small dots: 1 import or more; middle ones: 5 or more; large ones: 20 or more. Arrows never go up.",
)


def draw(modules: Mapping[str, Module]) -> str:
    """Return an SVG of the rooms, from top to bottom, and of the imports between them.

    Each room has one arrow, which comes down in its own lane. A dot connects each room that imports it to this lane.
    """
    rooms = [room for siblings in ORDER for room in siblings]
    row = {room: TOP + STEP * number for number, room in enumerate(rooms)}
    lane = {room: LEFT + STEP * number for number, room in enumerate(rooms)}
    imports = Counter((room_of(name), room_of(other)) for name in modules for other in imports_of(name, modules))
    rows: list[str] = []
    arrows: list[str] = []
    for room in rooms:
        ends = [lane[other] for other in rooms if other != room and imports[room, other]]
        rows += [f'<path class="row" d="M{LEFT} {row[room] + 5}H{max(ends)}"/>'] if ends else []
        above = {row[other]: imports[other, room] for other in rooms if other != room and imports[other, room]}
        arrows += _arrow(room, lane[room], row[room], above) if above else []
    width, height = lane[rooms[-1]] + 80, row[rooms[-1]] + 70
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', STYLE, '<rect width="100%" height="100%" fill="#fff"/>']
    boxes = [_box(room, row[room]) for room in rooms]
    legend = [f'<text x="8" y="{height - 34 + 18 * number}">{line}</text>' for number, line in enumerate(LEGEND)]
    parts = [*head, *rows, *arrows, *boxes, *legend, "</svg>"]
    return "\n".join(parts) + "\n"


def _box(room: str, y: int) -> str:
    package, _, name = room.partition(".")
    box = f'<rect x="8" y="{y - BOX // 2}" width="{LEFT - 8}" height="{BOX}" rx="3" fill="{COLORS[package]}"'
    style = ' fill-opacity=".85"' if name else ""
    return f'{box}{style}/><text class="in" x="14" y="{y + 4}">{name or package}</text>'


def _arrow(room: str, x: int, y: int, above: Mapping[int, int]) -> Iterator[str]:
    """Yield the SVG parts of a room's arrow: name, lane, line to its box, and a dot at each row that imports it."""
    color = COLORS[room.partition(".")[0]]
    start = min(above) + 5
    yield f'<path class="name" d="M{x} {TOP - 16}V{start}"/>'
    yield f'<text transform="translate({x + 3} {TOP - 20})rotate(-60)">{room.rpartition(".")[2]}</text>'
    yield f'<path stroke="{color}" d="M{x} {start}V{y - 4}H{LEFT + 7}"/>'
    yield f'<path style="fill:{color}" d="M{LEFT} {y - 4}l8 -4v8z"/>'
    for at, count in above.items():
        radius = next(radius for least, radius in SIZES if count >= least)
        yield f'<circle cx="{x}" cy="{at + 5}" r="{radius}" fill="{color}"/>'


def main() -> None:
    """Run one of the three commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["check", "width", "draw"])
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository; by default the one of this file")
    arguments = parser.parse_args()
    modules = read_modules(arguments.root)
    if arguments.command == "draw":
        (arguments.root / DRAWING).write_text(draw(modules), encoding="utf-8")
    elif arguments.command == "width":
        _fail(width_errors(modules))
    else:
        _fail([*order_errors(modules), *circle_errors(modules)])


def _fail(errors: Iterable[str]) -> None:
    if lines := "\n".join(errors):
        sys.exit(lines)


if __name__ == "__main__":
    main()
