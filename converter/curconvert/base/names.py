"""Takes canonical tensor names apart."""

from __future__ import annotations


def layer_of(name: str) -> int:
    """Return the number of the decoder layer in a canonical tensor name."""
    return int(name.split(".")[2])


def bias_of(name: str) -> str:
    """Return the name of the bias of a weight's linear."""
    return f"{name.removesuffix('weight')}bias"


QUANT_METHOD = "curconvert"


CPU = "cpu"
"""The device that every machine has."""
