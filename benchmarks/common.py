"""Holds what the scripts share: the demo model, and the writer of figures in `results/`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MODEL = ROOT / ".cache" / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_NAME = "SmolLM2-135M (dequantized Q4_1)"
_PACKAGES = ("torch", "onnxruntime", "onnxruntime-genai", "transformers")


class Result:
    """Figures of one script. Each figure is written to the file as soon as it is added.

    Figures in the file with the same setting and machine stay, so that you can split a long run.

    Args:
        path: The file.
        setting: What the figures depend on, such as model, text, window, tokens and dtype.
        threads: Number of threads of the measured operators.
    """

    def __init__(self, path: Path, setting: Mapping[str, Any], threads: int) -> None:
        self._path = path
        # Convert it through JSON, to compare it with the file's content.
        head: dict[str, Any] = json.loads(json.dumps({"setting": setting, "machine": machine(threads)}))
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        same = all(before.get(key) == value for key, value in head.items())
        self._content = {"command": _command(), **head, "tables": before["tables"] if same else {}}

    def rows(self, part: str) -> list[dict[str, Any]]:
        """Return the rows of a table; make an empty table if it does not exist."""
        rows: list[dict[str, Any]] = self._content["tables"].setdefault(part, [])
        return rows

    def find(self, part: str, **key: Any) -> dict[str, Any] | None:
        """Return the first row of a table with these values, or None."""
        return next((row for row in self.rows(part) if key.items() <= row.items()), None)

    def add(self, part: str, row: Mapping[str, Any], **key: Any) -> None:
        """Add a row to a table and write the file.

        Args:
            part: Name of the table.
            row: The figures, in bytes, seconds and plain numbers.
            **key: Values that identify the row; a row with the same values is replaced.
        """
        rows, before, found = self.rows(part), self.find(part, **key), {**key, **row}
        if before is None:
            rows.append(found)
        else:
            rows[rows.index(before)] = found
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(text_of(self._content), encoding="utf-8")
        print(f"{part}: {json.dumps(found, ensure_ascii=False)}", file=sys.stderr)


def text_of(content: Mapping[str, Any]) -> str:
    """Return a result as JSON text, with each row of a table on one line."""
    head = {key: value for key, value in content.items() if key != "tables"}
    tables = [
        f"  {json.dumps(name)}: [\n" + ",\n".join(f"   {json.dumps(row, ensure_ascii=False)}" for row in rows) + "\n  ]"
        for name, rows in content["tables"].items()
    ]
    start = json.dumps(head, indent=1, ensure_ascii=False).removesuffix("\n}")
    return f'{start},\n "tables": {{\n' + ",\n".join(tables) + "\n }\n}\n"


def machine(threads: int) -> dict[str, Any]:
    """Return a description of this machine and its software."""
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    cpu = found[1] if found else platform.machine()
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"cpu": f"{cpu}, {os.cpu_count()} cores", "threads": threads, "versions": versions}


def torch_threads() -> int:
    """Return the number of threads that torch uses."""
    import torch

    return torch.get_num_threads()


def arguments(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return an argument parser with the option for the result's file.

    Args:
        name: Name of the result.
        description: The script's docstring.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="where the figures go")
    return parser


def model_arguments(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return an argument parser with the options for the result's file and a model."""
    parser = arguments(name, description)
    parser.add_argument("--model", type=Path, default=MODEL)
    return parser


def model_name(path: Path) -> str:
    """Return the name of a model in results."""
    return MODEL_NAME if path == MODEL else path.name


def _command() -> str:
    """Return the running command line, with file names instead of paths."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    given = [argument.rstrip("/").rpartition("/")[2] for argument in sys.argv[1:]]
    return shlex.join(["python", "-m", spec.name if spec else "", *given])
