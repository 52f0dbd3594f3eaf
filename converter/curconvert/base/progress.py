"""Progress reports."""

from __future__ import annotations


def silent(_stage: str, _done: int, _total: int) -> None:
    """Report nothing."""
