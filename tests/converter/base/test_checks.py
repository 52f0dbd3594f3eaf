"""Option values that are taken and refused, and what a refusal says."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from curconvert.base import checks
from curconvert.base.errors import InputError


@pytest.mark.parametrize(
    ("check", "taken", "refused", "words"),
    [
        (lambda v: checks.one_of("--link", v, ("plain", "full")), ["plain", "full"], ["half"], "one of plain, full"),
        (lambda v: checks.one_of("--block-size", v, (32, 64)), [32, 64], [48, "32"], "one of 32, 64"),
        (lambda v: checks.at_least("--steps", v, 2), [2, 3], [1, 2.0, True, None, "2"], "an integer of at least 2"),
        (lambda v: checks.within("--ridge", v, 0, 1e6), [0, 1e6], [-1e-9, 2e6, math.nan], "a number from 0 to 1e+06"),
        (lambda v: checks.proper_share("--keep", v), [1e-9, 0.5], [0, 1, math.nan], "a share above 0 and below 1"),
    ],
)  # fmt: skip
def test_values(check: Callable[[Any], None], taken: list[Any], refused: list[Any], words: str) -> None:
    """The ends of each range are on the side that the message says."""
    for value in taken:
        check(value)
    for value in refused:
        with pytest.raises(InputError) as found:
            check(value)
        assert str(found.value).startswith("--") and str(value) in str(found.value)
        assert str(found.value).endswith(f": expected {words}")


def test_checks_work_without_torch() -> None:
    """The base install has no torch."""
    code = "import sys; import curconvert.base.checks, curconvert.base.types; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
