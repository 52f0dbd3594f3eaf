"""Library code leaves its process as it is: several threads of a host share it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import curconvert
import curconvert_runtime
import curconvert_schemas

PACKAGES = [Path(str(package.__file__)).parent for package in (curconvert, curconvert_runtime, curconvert_schemas)]
# The command line owns its process, and the worker of `bench` is a process of its own.
OWN_PROCESS = ("cli/", "jobs/bench/worker.py")
GLOBAL = {"redirect_stdout", "redirect_stderr", "dup2", "umask", "chdir", "setlocale"}


def global_changes(source: str) -> list[int]:
    """Return the lines that replace a standard stream, or name a function that changes the whole process."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)
        replaced = name in ("stdout", "stderr") and isinstance(getattr(node, "ctx", None), ast.Store)
        if name in GLOBAL or replaced:
            lines.append(getattr(node, "lineno", 0))
    return lines


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_no_library_module_changes_its_process(package: Path) -> None:
    """Streams, descriptors, the umask, the working folder and the locale stay."""
    modules = [
        path for path in package.rglob("*.py") if not path.relative_to(package).as_posix().startswith(OWN_PROCESS)
    ]
    assert len(modules) > 5
    assert [path for path in modules if global_changes(path.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    "source", ["sys.stdout = x", "with contextlib.redirect_stdout(x): pass", "os.dup2(1, 2)", "redirect_stderr(x)"]
)
def test_changes_are_found(source: str) -> None:
    """The search above sees each way."""
    assert global_changes(source) == [1]
