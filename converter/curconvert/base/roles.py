"""Defines the roles of a decoder block's linears. Families name their linears differently, so code uses the role."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class Role(StrEnum):
    """Role of a linear in a decoder block."""

    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    OUTPUT = "output"
    GATE = "gate"
    UP = "up"
    DOWN = "down"


MODULAR: Mapping[Role, str] = MappingProxyType(
    {Role.GATE: "modular_rows", Role.UP: "modular_rows", Role.DOWN: "modular_columns"}
)
"""Forms of the linears of an MLP with fewer neurons. All three are stored in these forms, or none is."""

SPARSE: Mapping[Role, str] = MappingProxyType(
    {Role.QUERY: "sparse_rows", Role.KEY: "sparse_rows", Role.VALUE: "sparse_rows", Role.OUTPUT: "sparse_columns"}
)
"""Forms of the linears of an attention whose heads keep only some of their dimensions."""
