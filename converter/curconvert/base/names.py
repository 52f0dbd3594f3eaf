"""Canonical tensor names, taken apart."""

from __future__ import annotations


def layer_of(name: str) -> int:
    """Decoder layer of a canonical tensor name."""
    return int(name.split(".")[2])


def bias_of(name: str) -> str:
    """Name of the bias beside a weight."""
    return f"{name.removesuffix('weight')}bias"


QUANT_METHOD = "curconvert"


CPU = "cpu"
"""The device that every machine has."""
