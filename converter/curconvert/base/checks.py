"""Checks option values. Each check raises a one-line error with the option, its value and the expected values."""

from __future__ import annotations

import re
from collections.abc import Collection

from curconvert.base.errors import InputError


def one_of(option: str, value: object, allowed: Collection[object]) -> None:
    """Raise InputError unless the value is one of the allowed ones."""
    if value not in allowed:
        raise InputError(f"{option} {value!r}: expected one of {', '.join(map(str, allowed))}")


def at_least(option: str, value: object, minimum: int) -> None:
    """Raise InputError unless the value is an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise InputError(f"{option} {value}: expected an integer of at least {minimum}")


def within(option: str, value: float, low: float, high: float) -> None:
    """Raise InputError unless low ≤ value ≤ high."""
    if not low <= value <= high:
        raise InputError(f"{option} {value}: expected a number from {low:g} to {high:g}")


def proper_share(option: str, value: float) -> None:
    """Raise InputError unless 0 < value < 1."""
    if not 0 < value < 1:
        raise InputError(f"{option} {value}: expected a share above 0 and below 1")


def check_device(name: str) -> None:
    """Raise InputError unless the name is `cpu`, `cuda` or `cuda:N`."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"--device {name!r}: expected cpu, cuda or cuda:N")
