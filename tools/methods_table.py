"""Write the table of methods in docs/methods.md from the registry; with `--check`, only compare.

Run it from the root of the project, in the environment that the tests use.
"""

from __future__ import annotations

import sys
from pathlib import Path

from curconvert.methods.core.method import SIZES, Method
from curconvert.methods.core.registry import methods

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
START, END = "<!-- methods -->", "<!-- end methods -->"


def table() -> str:
    """Return the table, one row for each method."""
    rows = ["| method | what it does | what is stored of an m × n matrix | size |", "|---|---|---|---|"]
    return "\n".join([*rows, *(row(method) for method in methods().values())])


def row(method: type[Method]) -> str:
    """Return a method's row of the table."""
    default = ", ".join(f"{SIZES[name]} {value:g}" for name, value in method.default_size.items())
    sizes = ", ".join(f"`{SIZES[name]}`" for name in method.sizes)
    cells = (f"`{method.name}`", method.summary, method.stores, f"{sizes} [{default}]" if sizes else "")
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def rendered(page: str) -> str:
    """Return the page with the new table between its marks."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{table()}\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Write the page; with `--check`, return 1 if it is out of date."""
    page = PAGE.read_text(encoding="utf-8")
    if "--check" not in arguments:
        PAGE.write_text(rendered(page), encoding="utf-8")
    elif rendered(page) != page:
        print(f"{PAGE.name}: its table of methods is out of date; run: python tools/methods_table.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
