"""Put the figures of `results/*.json` into the pages.

`<!-- table NAME -->` begins a table, `<!-- setting NAME -->` a folded list of what a result was measured with, and
`<!-- decision NAME -->` the last paragraph of an experiment's docstring. `<!-- end -->` ends each of them.
With `--check` nothing is written; a page that differs is an error.
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
# What the keys of a result's setting are called on a page; any other key is shown as it is, with a capital.
LABELS = {
    "1B": "Shape of the 1B rows",
    "bfloat16": "Effect of bfloat16",
    "cache": "Capacity of the cache, tokens",
    "cached": "Repetitions from the caches",
    "calibration": "Calibration text",
    "code": "Version of the code",
    "compressed": "What the compressed artifacts keep",
    "density": "Density of the other forms",
    "depth": "Models of different depth",
    "dtype": "Type of the weights",
    "fresh": "Fresh conversions",
    "generated": "Generated tokens",
    "headline": "*headline*",
    "int4": "int4",
    "int8": "int8",
    "layers": "Compressed layers",
    "linears": "Linears",
    "matrix": "Matrix, rows × columns",
    "pairs": "Test pairs",
    "parameters": "Parameters of the original",
    "perplexity": "Perplexity of the original",
    "pifa": "`pifa`",
    "prompt": "Prompt, tokens",
    "read, GB/s": "Read bandwidth of the machine, GB/s",
    "scored": "Scored artifact",
    "steps": "Decoding steps",
    "text": "Evaluation text",
    "tokens": "Evaluated tokens",
    "window": "Window, tokens",
}
_SECTION = re.compile(r"<!-- (table|setting|decision) (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def pages() -> list[Path]:
    """Return all pages that may hold figures."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def rendered(text: str) -> str:
    """Return the page with the present figures of the results."""
    return _SECTION.sub(_section, text)


def setting(name: str) -> str:
    """Return a folded list that says what a result was measured with, and how."""
    result = _result(name)
    machine, command = result["machine"], result["command"]
    threads = f"{machine['threads']} thread" + ("" if machine["threads"] == 1 else "s")
    facts = {LABELS.get(key, key[:1].upper() + key[1:]): value for key, value in result["setting"].items()}
    facts |= {
        "Machine": f"{machine['cpu']}, {threads}",
        "Versions": ", ".join(f"{package} {number}" for package, number in machine["versions"].items()),
        "Made by": f"`{command}`" if command.startswith("python ") else command,
    }
    items = (f"- {key}: {value:,}" if isinstance(value, int) else f"- {key}: {value}" for key, value in facts.items())
    lines = ['<details markdown="1">', "<summary>How this was measured</summary>", "", *items, "", "</details>"]
    return "\n".join(lines)


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
        sys.exit(f"{', '.join(map(str, differing))}: out of date; run python -m benchmarks.render")


if __name__ == "__main__":
    main()
