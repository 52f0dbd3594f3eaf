"""`--method curing`: the paper's own choices (arXiv 2501.04211)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from curconvert.methods.core.method import option
from curconvert.methods.cur import CUR


@dataclass(frozen=True)
class CURing(CUR):
    """Factorizes into C·U·R with rows and columns by DEIM on WANDA's importance, and U optimal for the weights."""

    name: ClassVar[str] = "curing"
    summary: ClassVar[str] = (
        "C·U·R as in CURing: rows and columns by DEIM, U minimizes the weight error (arXiv 2501.04211)"
    )

    selector: str = option("--select", "deim")
    importance: str = option("--importance", "wanda")
    link: str = option("--link", "plain")


METHOD = CURing
