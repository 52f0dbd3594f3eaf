"""Reads experts in MXFP4, as gpt-oss stores them: `NAME_blocks` and `NAME_scales` (`quant_method` `mxfp4`)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from curconvert.checkpoint.stored.packing import e8m0, unpack_e2m1
from curconvert.checkpoint.stored.recipe import Decoding, Read, Recipe, Stored, scaled

_BLOCK = 32  # numbers that share a scale
_BLOCKS, _SCALES = "_blocks", "_scales"


def decode_mxfp4(stored: Stored, _: Mapping[str, Any]) -> Decoding:
    """Return recipes for the MXFP4 experts of a checkpoint."""
    weights: dict[str, Recipe] = {}
    parts: list[str] = []
    for name, blocks in stored.tensors.items():
        if name.endswith(_BLOCKS) and blocks.dtype == "U8":
            weight = name.removesuffix(_BLOCKS)
            scales = stored.part(weight + _SCALES, name)
            experts, outputs, groups = (*blocks.shape, 0, 0, 0)[:3]
            stored.check_shape(blocks, (experts, outputs, groups, _BLOCK // 2))
            stored.check_shape(scales, (experts, outputs, groups))
            weights[weight] = Recipe((experts, groups * _BLOCK, outputs), partial(_compute, name, scales.name))
            parts += [name, scales.name]
    return Decoding(weights, parts)


def _compute(blocks: str, scales: str, read: Read, dtype: torch.dtype) -> torch.Tensor:
    """Return (experts, inputs, outputs): the model multiplies from the left, the file stores outputs first."""
    packed, exponents = read(blocks), read(scales)
    experts, outputs, groups = exponents.shape
    result = torch.empty((experts, groups * _BLOCK, outputs), dtype=dtype)
    for expert in range(experts):
        values = unpack_e2m1(packed[expert].flatten(1))
        result[expert] = scaled(values, e8m0(exponents[expert]), (1, _BLOCK), dtype).T
    return result
