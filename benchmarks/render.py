"""Put the figures of `results/*.json` into the pages.

It fills the text before the next `<!-- end -->`. After `<!-- table NAME -->` it writes a table, after
`<!-- setting NAME -->` the setting of a result, and after `<!-- decision NAME -->` the last paragraph of an
experiment's docstring. With `--check` it writes nothing; a page that differs is an error.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks import experiment_tables, tables
from benchmarks.common import RESULTS, ROOT

TABLES = tables.TABLES | experiment_tables.TABLES
EXPERIMENTS = ROOT / "benchmarks" / "experiments"
_SECTION = re.compile(r"<!-- (table|setting|decision) (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def pages() -> list[Path]:
    """Return all pages that may hold figures."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def rendered(text: str) -> str:
    """Return the page with the present figures of the results."""
    return _SECTION.sub(_section, text)


def setting(name: str) -> str:
    """Return a line with the setting, machine and command of a result."""
    result = _result(name)
    machine = result["machine"]
    parts = [
        f"{key}: {value:,}" if isinstance(value, int) else f"{key}: {value}" for key, value in result["setting"].items()
    ]
    threads = f"{machine['threads']} thread" + ("" if machine["threads"] == 1 else "s")
    versions = ", ".join(f"{package} {number}" for package, number in machine["versions"].items())
    command = result["command"]
    made = f"`{command}`" if command.startswith("python ") else command
    return f"Measured with {'; '.join(parts)}; {machine['cpu']}, {threads}; {versions}. Made by {made}."


def decision(name: str) -> str:
    """Return the last paragraph of an experiment's docstring."""
    source = ast.parse((EXPERIMENTS / f"{name}.py").read_text(encoding="utf-8"))
    text = ast.get_docstring(source) or ""
    return " ".join(text.split("\n\n")[-1].split())


def _section(found: re.Match[str]) -> str:
    kind, name = found[1], found[2]
    if kind == "table":
        table = TABLES[name]
        text = table.markdown(_result(table.result)["tables"])
    else:
        text = setting(name) if kind == "setting" else decision(name)
    return f"<!-- {kind} {name} -->\n{text}\n<!-- end -->"


@cache
def _result(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return content


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a page differs")
    check = parser.parse_args().check
    differing = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        wanted = rendered(text)
        if wanted != text:
            differing.append(page.relative_to(ROOT))
            if not check:
                page.write_text(wanted, encoding="utf-8")
    if check and differing:
        sys.exit(f"{', '.join(map(str, differing))}: other figures than the results': run python -m benchmarks.render")


if __name__ == "__main__":
    main()
