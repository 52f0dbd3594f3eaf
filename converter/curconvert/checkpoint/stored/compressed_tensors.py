"""Reads what the compressed-tensors library writes: packed and plain integers, FP8, NVFP4 and MXFP4.

The configuration gives each group of modules its widths and blocks, and finds the modules by regular expressions. The
shapes of the stored tensors tell the same without them, so no expression of an unknown author is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from curconvert.base.errors import InputError, UnsupportedError
from curconvert.checkpoint.stored.fp8 import FLOATS, block_size, matrix_shape
from curconvert.checkpoint.stored.packing import unpack_e2m1, unpack_integers
from curconvert.checkpoint.stored.recipe import Decoding, Read, Recipe, Stored, of_activations
from curconvert.checkpoint.stored.scales import Load, Scaled, block_of, loads, loads_grid, loads_scale
from curconvert.checkpoint.types import TensorInfo

_FORMATS = (
    "dense", "float-quantized", "int-quantized", "mixed-precision", "mxfp4-pack-quantized", "naive-quantized",
    "nvfp4-pack-quantized", "pack-quantized",
)  # fmt: skip
_WIDTHS = (2, 4, 8)  # bits that fill a word of 32 without a gap
_PLAIN = "dense"  # the format of a module that is not sparse
_Found = tuple[Recipe, list[str]]


@dataclass(frozen=True)
class _Module:
    """A quantized module, and what the configuration says about all modules.

    Attributes:
        stored: The checkpoint.
        name: Path of the module.
        weight: Its stored numbers.
        widths: Bits of a number that occur in the checkpoint.
        blocks: Rows and columns that share a scale.
        symmetric: Whether some modules have no zero points.
    """

    stored: Stored
    name: str
    weight: TensorInfo
    widths: tuple[int, ...]
    blocks: tuple[tuple[int, int], ...]
    symmetric: bool

    def part(self, kind: str) -> TensorInfo:
        """Return another stored tensor of the module."""
        return self.stored.part(f"{self.name}.weight_{kind}", self.weight.name)

    def has(self, kind: str) -> bool:
        """Tell whether another tensor of the module is stored."""
        return f"{self.name}.weight_{kind}" in self.stored.tensors


def decode_compressed_tensors(stored: Stored, settings: Mapping[str, Any]) -> Decoding:
    """Return recipes for the quantized weights of a checkpoint.

    Raises:
        InputError: The configuration is malformed, or the tensors contradict it.
        UnsupportedError: The weights are sparse or rotated, or the layout is another one.
    """
    groups = list(_groups(settings, stored.source))
    widths = tuple(_width(group, stored.source) for group in groups)
    blocks = tuple(block for group in groups for block in _blocks(group, stored.source))
    symmetric = any(group.get("symmetric", True) for group in groups)
    weights: dict[str, Recipe] = {}
    parts: list[str] = []
    for name, info in stored.tensors.items():
        module, _, kind = name.rpartition(".")
        if (decode := _LAYOUTS.get((kind, info.dtype))) is None:
            continue  # a plain tensor or a part, or what `check_plain` refuses by its name or dtype
        recipe, used = decode(_Module(stored, module, info, widths, blocks, symmetric))
        weights[f"{module}.weight"] = recipe
        parts += used
    return Decoding(weights, parts, of_activations(stored.tensors))


def _groups(settings: Mapping[str, Any], source: str) -> Iterator[Mapping[str, Any]]:
    """Yield how each group of modules stores its weights."""
    for key in ("sparsity_config", "transform_config"):
        value = settings.get(key)
        if value and not (isinstance(value, dict) and value.get("format") == _PLAIN):
            raise _unsupported(source, f"{key} {value!r:.60}")
    groups = settings.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise InputError(f"{source}: quantization_config has no config_groups, which say how weights are stored")
    found = False
    for key, group in groups.items():
        if not isinstance(group, dict):
            raise InputError(f"{source}: {key:.60} of quantization_config is {group!r:.60}, expected an object")
        for layout in (group.get("format"), settings.get("format")):
            if layout is not None and layout not in _FORMATS:
                raise _unsupported(source, f"format {layout!r:.60}")
        if isinstance(group.get("weights"), dict):
            found = True
            yield group["weights"]
    if not found:
        raise InputError(f"{source}: no group of quantization_config says how weights are stored")


def _unsupported(source: str, what: str) -> UnsupportedError:
    return UnsupportedError(
        f"{source}: a compressed-tensors checkpoint with {what}, which is not read; give the unquantized model"
    )


def _width(group: Mapping[str, Any], source: str) -> int:
    bits = group.get("num_bits")
    if type(bits) is not int or bits not in _WIDTHS:
        raise _unsupported(source, f"num_bits {bits!r:.20}")
    return bits


def _blocks(group: Mapping[str, Any], source: str) -> Iterator[tuple[int, int]]:
    if group.get("block_structure") is not None:
        yield block_size(group["block_structure"], source)
    elif group.get("group_size") not in (None, -1):
        yield block_size((1, group["group_size"]), source)


def _plain(module: _Module) -> _Found:
    """Return the recipe of numbers that are stored one by one."""
    name = module.weight.name
    return _with_scales(module, matrix_shape(module.stored, module.weight), loads(name), max(module.widths))


def _packed_integers(module: _Module) -> _Found:
    entry, stored = module.part("shape"), module.stored
    stored.check_shape(entry, (2,))
    rows, columns = (int(size) for size in stored.read(entry.name))
    words = {-(-columns * bits // 32): bits for bits in sorted(module.widths, reverse=True)}
    stored.check_shape(module.weight, *((rows, count) for count in words))
    bits = words[module.weight.shape[1]]
    recipe, used = _with_scales(module, (rows, columns), partial(_integers, module.weight.name, bits, columns), bits)
    return recipe, [*used, entry.name]


def _with_scales(module: _Module, shape: tuple[int, int], values: Load, bits: int) -> _Found:
    """Return the recipe of numbers with scales, zero points and an order of the columns, as far as they are stored."""
    stored, scale = module.stored, module.part("scale")
    block = block_of(stored, scale, shape, module.blocks)
    used, zero, groups = [module.weight.name, scale.name], None, None
    if module.has("zero_point") or not module.symmetric:
        entry = module.part("zero_point")
        packed = entry.dtype == "I32"
        columns = scale.shape[1] if len(scale.shape) == 2 else 1
        stored.check_shape(entry, (-(-shape[0] * bits // 32), columns) if packed else scale.shape)
        zero = partial(_zeros, entry.name, bits, shape[0]) if packed else loads_grid(entry.name)
        used.append(entry.name)
    if module.has("g_idx"):
        entry = module.part("g_idx")
        stored.check_shape(entry, (shape[1],))
        groups = _order(stored, entry, scale)
        used.append(entry.name)
    return Scaled(values, loads_scale(scale), block, zero, groups).recipe(shape), used


def _packed_floats(module: _Module) -> _Found:
    rows, pairs = matrix_shape(module.stored, module.weight)
    shape, scale, name = (rows, 2 * pairs), module.part("scale"), module.weight.name
    block = block_of(module.stored, scale, shape, module.blocks)
    grid, used = loads_scale(scale), [name, scale.name]
    if module.has("global_scale") or scale.dtype in FLOATS:  # NVFP4: one factor enlarges the scales to FP8's range
        factor = module.part("global_scale")
        module.stored.check_shape(factor, (), (1,))
        grid, used = partial(_divided, grid, factor.name), [*used, factor.name]
    return Scaled(lambda read: unpack_e2m1(read(name)), grid, block).recipe(shape), used


def _integers(name: str, bits: int, columns: int, read: Read) -> torch.Tensor:
    return unpack_integers(read(name), bits, columns)


def _zeros(name: str, bits: int, rows: int, read: Read) -> torch.Tensor:
    """Return zero points, which are packed along the rows."""
    return unpack_integers(read(name).T.contiguous(), bits, rows).T


def _divided(grid: Load, factor: str, read: Read) -> torch.Tensor:
    return grid(read) / read(factor).to(torch.float64).reshape(())


def _order(stored: Stored, order: TensorInfo, scale: TensorInfo) -> Load | None:
    """Return what loads the group of each column, if the columns were quantized in another order."""
    groups = stored.read(order.name)
    if bool((groups < 0).all()):
        return None
    if bool(((groups < 0) | (groups >= scale.shape[-1])).any()):
        raise InputError(f"{stored.source}: tensor {order.name} names a group outside {scale.name}")
    return loads(order.name)


_LAYOUTS: Mapping[tuple[str, str], Callable[[_Module], _Found]] = {
    ("weight_packed", "I32"): _packed_integers,
    ("weight_packed", "U8"): _packed_floats,
    **{("weight", dtype): _plain for dtype in (*FLOATS, "I8")},
}
