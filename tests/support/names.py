"""Names of tensors, taken apart independently of the code under test."""

from __future__ import annotations


def linear_of(name: str) -> str:
    """Return the linear of a canonical weight name, such as `q_proj`."""
    return name.split(".")[-2]
