"""Defines the progress callback."""

from __future__ import annotations


def silent(_stage: str, _done: int, _total: int) -> None:
    """Ignore all reports: the callback for callers that want none."""
