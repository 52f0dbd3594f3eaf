"""Writes numbers of things as people do."""

from __future__ import annotations


def counted(number: int, thing: str, things: str = "") -> str:
    """Return a number with its noun: `1 round`, `2 rounds`."""
    return f"{number} {thing if number == 1 else things or thing + 's'}"
