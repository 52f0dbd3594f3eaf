"""Names of the tensors that a matrix is stored as: `….q_proj.weight` in C, U and R is `….q_proj.C` and so on."""

from __future__ import annotations

INDICES = ("rows", "cols", "order")
"""Suffixes of the int32 vectors."""
PROVENANCE = (".rows", ".cols")
"""Endings of the tensors that say where factors come from; the product does not need them, so no graph reads them."""


def factor_name(weight: str, suffix: str) -> str:
    """Name of a factor: `….q_proj.weight` and `C` give `….q_proj.C`."""
    return f"{weight.removesuffix('weight')}{suffix}"


def is_index(name: str) -> bool:
    """Tell whether a stored tensor's name is that of an index vector."""
    return name.rpartition(".")[2] in INDICES
