"""What `import curconvert` offers: the options, the functions behind the commands, and their results."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import curconvert
import curconvert_runtime


@pytest.mark.parametrize("name", [*curconvert.__all__, "__version__"])
def test_every_public_name_resolves(name: str) -> None:
    """Each name of `__all__` can be imported."""
    assert getattr(curconvert, name) is not None


@pytest.mark.parametrize("command", ["convert", "sweep", "plan", "export", "heal", "resize", "bench"])
def test_each_job_is_a_public_function(command: str) -> None:
    """The function behind a command has the command's name."""
    assert command in curconvert.__all__
    assert inspect.isfunction(getattr(curconvert, command))


def test_dir_lists_public_names_only() -> None:
    """No helper that the module imports shows up in completion."""
    shown = {name for name in dir(curconvert) if not name.startswith("__")}
    assert shown == set(curconvert.__all__)
    assert "__version__" in dir(curconvert)


def test_both_packages_have_one_version() -> None:
    """They are one distribution."""
    assert curconvert.__version__ == curconvert_runtime.__version__


def test_an_unknown_name_is_an_attribute_error() -> None:
    """Lazy imports do not change what a typing mistake does."""
    with pytest.raises(AttributeError, match="nothing"):
        curconvert.nothing  # noqa: B018


def test_importing_the_package_does_not_import_torch() -> None:
    """The commands without torch import it as well."""
    code = "import sys, curconvert\nassert not {'torch', 'numpy', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("package", [curconvert, curconvert_runtime])
def test_every_public_function_documents_its_arguments(package: object) -> None:
    """The Python reference is rendered from docstrings: each parameter has a line, and the result has one."""
    for name in package.__all__:  # type: ignore[attr-defined]
        value = getattr(package, name)
        if inspect.isfunction(value) and name != "generate":  # which takes the arguments of `stream`
            text = inspect.getdoc(value) or ""
            missing = [
                parameter for parameter in inspect.signature(value).parameters if f"\n    {parameter}: " not in text
            ]
            assert not missing, f"{name}: {missing}"
