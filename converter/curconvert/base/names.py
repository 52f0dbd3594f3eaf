"""Canonical tensor names, taken apart."""

from __future__ import annotations


def layer_of(name: str) -> int:
    """Decoder layer of a canonical tensor name."""
    return int(name.split(".")[2])


def bias_of(name: str) -> str:
    """Name of the bias beside a weight."""
    return f"{name.removesuffix('weight')}bias"


def linear_of(name: str) -> str:
    """Linear of a canonical weight name, such as `q_proj`."""
    return name.split(".")[-2]


QUANT_METHOD = "curconvert"


CPU = "cpu"
"""The device that every machine has."""
