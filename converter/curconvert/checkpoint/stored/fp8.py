"""Reads weights in FP8 with a scale for the tensor, for each row, or for each block (`quant_method` `fp8`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curconvert.base.errors import InputError
from curconvert.checkpoint.stored.recipe import Decoding, Recipe, Stored, of_activations
from curconvert.checkpoint.stored.scales import Scaled, block_of, loads, loads_scale
from curconvert.checkpoint.types import TensorInfo

FLOATS = ("F8_E4M3", "F8_E5M2")
# Both names mean the factor that gives back the weight; the first one is the inverse of what multiplied it before.
_SCALES = ("_scale_inv", "_scale")
_DEFAULT_BLOCK = (128, 128)


def decode_fp8(stored: Stored, settings: Mapping[str, Any]) -> Decoding:
    """Return recipes for the FP8 weights of a checkpoint."""
    block = settings.get("weight_block_size", _DEFAULT_BLOCK)
    blocks = () if block is None else (block_size(block, stored.source),)
    weights: dict[str, Recipe] = {}
    parts: list[str] = []
    for name, info in stored.tensors.items():
        if info.dtype in FLOATS:
            scale = next((name + end for end in _SCALES if name + end in stored.tensors), name + _SCALES[0])
            entry, shape = stored.part(scale, name), matrix_shape(stored, info)
            parts.append(scale)
            weights[name] = Scaled(loads(name), loads_scale(entry), block_of(stored, entry, shape, blocks)).recipe(
                shape
            )
    return Decoding(weights, parts, of_activations(stored.tensors))


def block_size(value: Any, source: str) -> tuple[int, int]:
    """Return the rows and columns of a block.

    Raises:
        InputError: The value is no pair of positive integers.
    """
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(type(n) is int and n > 0 for n in value):
        raise InputError(f"{source}: a block of quantization_config is {value!r:.60}, expected two positive integers")
    return value[0], value[1]


def matrix_shape(stored: Stored, info: TensorInfo) -> tuple[int, int]:
    """Return the rows and columns of a quantized tensor.

    Raises:
        InputError: It is no matrix.
    """
    if len(info.shape) != 2:
        raise InputError(
            f"{stored.source}: tensor {info.name} is quantized and is {list(info.shape)}, expected a matrix"
        )
    return info.shape[0], info.shape[1]
