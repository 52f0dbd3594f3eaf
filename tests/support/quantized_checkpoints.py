"""Tiny checkpoints with quantized weights, and what they hold by the definition of each format, in NumPy's float64."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

Array = npt.NDArray[Any]
Parts = dict[str, Array]
_DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "e8m0": torch.float8_e8m0fnu}
_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


@dataclass(frozen=True)
class Float8:
    """Codes of an eight-bit float type."""

    kind: str
    codes: Array

    @property
    def values(self) -> Array:
        """What the codes mean, from the definitions of OCP's formats."""
        if self.kind == "e8m0":
            return 2.0 ** (self.codes.astype(np.float64) - 127)
        bits, bias = (3, 7) if self.kind == "e4m3" else (2, 15)
        codes = self.codes.astype(np.int64)
        sign, exponent, mantissa = 1 - 2 * (codes >> 7), (codes >> bits) & (127 >> bits), codes & (2**bits - 1)
        normal = (1 + mantissa / 2**bits) * 2.0 ** (exponent - bias)
        return sign * np.where(exponent == 0, mantissa / 2**bits * 2.0 ** (1 - bias), normal)


Encode = Callable[[np.random.Generator, tuple[int, int]], tuple[dict[str, Any], Array]]
"""Returns the stored parts of a weight by the end of their names, and the weight in float64."""


@dataclass(frozen=True)
class Format:
    """A quantized format.

    Attributes:
        config: Its `quantization_config`.
        encode: Makes a weight.
    """

    config: Mapping[str, Any]
    encode: Encode


def _float8(rng: np.random.Generator, shape: tuple[int, ...], kind: str = "e4m3") -> Float8:
    codes = rng.integers(0, 0x60, shape) | rng.integers(0, 2, shape) << 7  # neither infinite nor NaN
    return Float8(kind, codes.astype(np.uint8))


def _scales(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return (0.001 * (1 + rng.random(shape))).astype(np.float32)


def _spread(grid: Array, block: tuple[int, int], shape: tuple[int, int]) -> Array:
    """Repeat each number over its block."""
    whole = np.repeat(np.repeat(grid.astype(np.float64), block[0], 0), block[1], 1)
    return whole[: shape[0], : shape[1]]


def _grid(shape: tuple[int, int], block: tuple[int, int]) -> tuple[int, int]:
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def fp8(block: tuple[int, int] | str, name: str = "weight_scale_inv", kind: str = "e4m3", scale: str = "f32") -> Encode:
    """FP8 with a scale for a `tensor`, for each `row`, or for each block."""

    def encode(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[dict[str, Any], Array]:
        size = {"tensor": shape, "row": (1, shape[1])}.get(block, block) if isinstance(block, str) else block
        values = _float8(rng, shape, kind)
        if scale == "e8m0":
            stored: Any = Float8("e8m0", rng.integers(115, 120, _grid(shape, size)).astype(np.uint8))
            factors = stored.values
        else:
            stored = factors = _scales(rng, _grid(shape, size))
        if block == "tensor":
            stored = stored.reshape(())
        return {"weight": values, name: stored}, values.values * _spread(factors, size, shape)

    return encode


def integers(
    bits: int, block: tuple[int, int] | None, *, packed: bool, zeros: bool = False, shuffled: bool = False
) -> Encode:
    """Integers with a scale for each group or row; packed in words of 32 bits, or one to a byte."""

    def encode(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[dict[str, Any], Array]:
        size, half = block or (1, shape[1]), 2 ** (bits - 1)
        values = rng.integers(-half, half, shape)
        grid = _grid(shape, size)
        scale, zero = _scales(rng, grid), rng.integers(-half, half, grid) if zeros else np.zeros(grid, int)
        across = np.arange(shape[1]) // size[1]
        parts: dict[str, Any] = {"weight_scale": scale}
        if shuffled:
            across = rng.permutation(across)
            parts["weight_g_idx"] = across.astype(np.int32)
        if packed:
            parts |= {"weight_packed": pack(values, bits), "weight_shape": np.array(shape, np.int64)}
        else:
            parts["weight"] = values.astype(np.int8)
        if zeros:
            parts["weight_zero_point"] = pack(zero.T, bits).T if packed else zero.astype(np.int8)
        down = np.arange(shape[0]) // size[0]
        return parts, (values - zero[down][:, across]) * scale.astype(np.float64)[down][:, across]

    return encode


def pack(values: Array, bits: int) -> Array:
    """Put numbers into 32-bit words, the first one in the lowest bits, with an offset that makes them positive."""
    per_word = 32 // bits
    words = np.zeros((len(values), -(-values.shape[1] // per_word)), np.uint32)
    for column, numbers in enumerate((values + 2 ** (bits - 1)).T):
        words[:, column // per_word] |= numbers.astype(np.uint32) << np.uint32(bits * (column % per_word))
    return words.view(np.int32)


def fp4(group: int, *, global_scale: bool) -> Encode:
    """Four-bit floats, two to a byte: NVFP4 with FP8 scales and one factor, or MXFP4 with powers of two."""

    def encode(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[dict[str, Any], Array]:
        codes, grid = rng.integers(0, 16, shape).astype(np.uint8), (shape[0], shape[1] // group)
        parts: dict[str, Any] = {"weight_packed": codes[:, ::2] | codes[:, 1::2] << 4}
        if global_scale:
            scale, factor = _float8(rng, grid), np.array([700.0], np.float32)
            parts |= {"weight_scale": scale, "weight_global_scale": factor}
            factors = np.abs(scale.values) / 700
            scale.codes[:] &= 127
        else:
            exponents = rng.integers(115, 120, grid).astype(np.uint8)
            parts["weight_scale"], factors = exponents, 2.0 ** (exponents.astype(np.float64) - 127)
        return parts, _E2M1[codes] * _spread(factors, (1, group), shape)

    return encode


def _compressed(layout: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "input_activations": None, "weights": {"symmetric": True, **weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


def _fp8_config(block: list[int] | None) -> dict[str, Any]:
    return {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block}


_INT, _FLOAT = {"type": "int"}, {"type": "float"}
FORMATS: dict[str, Format] = {
    "fp8-blocks": Format(_fp8_config([16, 16]), fp8((16, 16))),
    "fp8-blocks-that-end-early": Format(_fp8_config([24, 20]), fp8((24, 20))),
    "fp8-e8m0-scales": Format(_fp8_config([16, 16]), fp8((16, 16), scale="e8m0")),
    "fp8-e5m2": Format(_fp8_config([16, 16]), fp8((16, 16), kind="e5m2")),
    "fp8-tensor": Format(_fp8_config(None), fp8("tensor")),
    "fp8-tensor-of-autofp8": Format(
        {"quant_method": "fp8", "activation_scheme": "static"}, fp8("tensor", "weight_scale")
    ),
    "fbgemm-rows": Format({"quant_method": "fbgemm_fp8"}, fp8("row", "weight_scale")),
    "ct-float-rows": Format(
        _compressed("float-quantized", num_bits=8, strategy="channel", **_FLOAT), fp8("row", "weight_scale")
    ),
    "ct-float-blocks": Format(
        _compressed("float-quantized", num_bits=8, strategy="block", block_structure=[16, 16], **_FLOAT),
        fp8((16, 16), "weight_scale"),
    ),
    "ct-int8-rows": Format(
        _compressed("int-quantized", num_bits=8, strategy="channel", **_INT), integers(8, None, packed=False)
    ),
    "ct-int8-rows-with-zeros": Format(
        _compressed("int-quantized", num_bits=8, strategy="channel", **_INT | {"symmetric": False}),
        integers(8, None, packed=False, zeros=True),
    ),
    "ct-packed-int4-groups": Format(
        _compressed("pack-quantized", num_bits=4, strategy="group", group_size=16, **_INT),
        integers(4, (1, 16), packed=True),
    ),
    "ct-packed-int4-groups-with-zeros": Format(
        _compressed("pack-quantized", num_bits=4, strategy="group", group_size=16, **_INT | {"symmetric": False}),
        integers(4, (1, 16), packed=True, zeros=True),
    ),
    "ct-packed-int4-in-another-order": Format(
        _compressed("pack-quantized", num_bits=4, strategy="group", group_size=16, actorder="group", **_INT),
        integers(4, (1, 16), packed=True, shuffled=True),
    ),
    "ct-packed-int8-rows": Format(
        _compressed("pack-quantized", num_bits=8, strategy="channel", **_INT), integers(8, None, packed=True)
    ),
    "ct-nvfp4": Format(
        _compressed("nvfp4-pack-quantized", num_bits=4, strategy="tensor_group", group_size=16, **_FLOAT),
        fp4(16, global_scale=True),
    ),
    "ct-mxfp4": Format(
        _compressed("mxfp4-pack-quantized", num_bits=4, strategy="group", group_size=16, **_FLOAT),
        fp4(16, global_scale=False),
    ),
}
"""Formats that are read. Groups have 16 numbers, because the tiny models' widths are 32 and 48."""


def as_torch(value: Any) -> torch.Tensor:
    """Return an array, or the codes of a float type, as a tensor."""
    if isinstance(value, Float8):
        return torch.from_numpy(value.codes.copy()).view(_DTYPES[value.kind])
    return torch.from_numpy(np.ascontiguousarray(value))


def quantize_checkpoint(source: Path, folder: Path, kind: Format, seed: int = 0) -> dict[str, Array]:
    """Write a copy of a checkpoint whose projections are quantized numbers.

    Returns:
        What the quantized weights hold, by name.
    """
    shutil.copytree(source, folder)
    rng, tensors, expected = np.random.default_rng(seed), load_file(source / "model.safetensors"), {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        rows, columns = tensors.pop(name).shape
        parts, expected[name] = kind.encode(rng, (rows, columns))
        stem = name.removesuffix("weight")
        tensors |= {f"{stem}{end}": as_torch(value) for end, value in parts.items()}
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": dict(kind.config)}))
    return expected
