"""Checks that options share."""

from __future__ import annotations

import re

from curconvert.base.errors import InputError


def check_device(name: str) -> None:
    """Refuse what is no device's name.

    Raises:
        InputError: It is not.
    """
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise InputError(f"--device {name!r}: expected cpu, cuda or cuda:N")
