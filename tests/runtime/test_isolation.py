"""The runtime stands alone: no torch, transformers, onnx, safetensors or click; and importing it costs nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import curconvert_runtime

ROOT = Path(__file__).parents[2]
BLOCKED = (
    "torch",
    "transformers",
    "onnx",
    "onnx_ir",
    "safetensors",
    "click",
    "rich",
    "ml_dtypes",
    "scipy",
    "curconvert",
)


def imported(path: Path) -> Iterator[str]:
    """Yield the modules that a file of the tests imports, those of the support files that it imports included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for name in names:
            yield name
            support = ROOT / "tests" / f"{name.replace('.', '/')}.py"
            if name.startswith("support.") and support.exists():
                yield from imported(support)


def test_the_tests_of_the_runtime_need_no_converter() -> None:
    """So they can run where only the base package is installed."""
    heavy = {*BLOCKED} - {"scipy"}  # an oracle
    files = sorted((ROOT / "tests" / "runtime").rglob("*.py"))
    assert len(files) > 10
    found = {(path.name, name) for path in files for name in imported(path) if name.split(".")[0] in heavy}
    assert not found


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter in which the blocked packages cannot be imported."""
    prelude = (
        "import sys\n"
        f"sys.path[:0] = {[str(ROOT / 'runtime'), str(ROOT / 'schemas')]!r}\n"
        f"for name in {BLOCKED!r}: sys.modules[name] = None\n"
    )
    return subprocess.run(
        [sys.executable, "-c", prelude + code, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("graph", ["portable", "fused"])
def test_load_and_generate_need_no_heavy_package(sealed: Path, graph: str) -> None:
    """With torch, transformers, onnx, safetensors and click blocked, an artifact loads and generates."""
    code = (
        "import curconvert_runtime as r\n"
        "session = r.load(sys.argv[1], graph=sys.argv[2], threads=1)\n"
        "print(session.generate('Hi', r.GenerationOptions(max_new_tokens=3, chat=True)).finish_reason)\n"
    )
    result = run(code, str(sealed), graph)
    assert (result.returncode, result.stdout, result.stderr) == (0, "length\n", "")


def test_importing_the_package_loads_nothing_else() -> None:
    """Neither NumPy nor onnxruntime is imported before it is used."""
    result = run(
        "import curconvert_runtime\nprint([n for n in ('numpy', 'onnxruntime', 'jinja2') if n in sys.modules])"
    )
    assert result.stdout == "[]\n", result.stderr


@pytest.mark.parametrize("name", [*curconvert_runtime.__all__, "__version__"])
def test_every_public_name_resolves(name: str) -> None:
    """What is announced is there."""
    assert getattr(curconvert_runtime, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    """Lazy imports do not change what a typing mistake does."""
    with pytest.raises(AttributeError, match="nothing"):
        curconvert_runtime.nothing  # noqa: B018


def test_dir_lists_public_names_only() -> None:
    """No helper that the module imports shows up in completion."""
    shown = {name for name in dir(curconvert_runtime) if not name.startswith("__")}
    assert shown == set(curconvert_runtime.__all__)
    assert "__version__" in dir(curconvert_runtime)
