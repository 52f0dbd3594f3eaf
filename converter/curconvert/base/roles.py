"""What the linears of a decoder block are for. Families call them by names of their own; code says the role."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class Role(StrEnum):
    """What a linear of a decoder block is for."""

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
"""The linears of a smaller MLP, each with its form: they are stored so together or not at all."""

SPARSE: Mapping[Role, str] = MappingProxyType(
    {Role.QUERY: "sparse_rows", Role.KEY: "sparse_rows", Role.VALUE: "sparse_rows", Role.OUTPUT: "sparse_columns"}
)
"""The linears of an attention whose heads keep some of their dimensions, each with its form."""
