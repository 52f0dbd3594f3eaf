"""Finds the compression methods: one in every module of `curconvert.methods`."""

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

    To add a method, add a module with a `METHOD` to `curconvert.methods`; there is no other list.
    """
    names = [module.name for module in pkgutil.iter_modules(curconvert.methods.__path__) if not module.ispkg]
    modules = [importlib.import_module(f"{curconvert.methods.__name__}.{name}") for name in names]
    found: list[type[Method]] = [module.METHOD for module in modules]
    return MappingProxyType({method.name: method for method in sorted(found, key=lambda method: method.name)})


def method_named(name: str) -> type[Method]:
    """Return the method with this name.

    Raises:
        InputError: There is no such method.
    """
    one_of("--method", name, tuple(methods()))
    return methods()[name]
