"""The methods there are: every module of `curconvert.methods` that defines one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

import curconvert.methods
from curconvert.base.checks import one_of
from curconvert.methods.core.method import Method


@cache
def methods() -> Mapping[str, type[Method]]:
    """Return every method by its name, sorted.

    A module beside this package that has a `METHOD` adds one; there is no other list.
    """
    names = [module.name for module in pkgutil.iter_modules(curconvert.methods.__path__) if not module.ispkg]
    modules = [importlib.import_module(f"{curconvert.methods.__name__}.{name}") for name in names]
    found: list[type[Method]] = [module.METHOD for module in modules]
    return MappingProxyType({method.name: method for method in sorted(found, key=lambda method: method.name)})


def method_named(name: str) -> type[Method]:
    """Return a method.

    Raises:
        InputError: There is none of that name.
    """
    one_of("--method", name, tuple(methods()))
    return methods()[name]
