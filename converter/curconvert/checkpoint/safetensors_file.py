"""Reads safetensors files: headers, byte ranges, index files and memory-mapped tensors."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from curconvert.base.errors import InputError, IntegrityError, UnsupportedError
from curconvert.checkpoint.files import ModelFolder, load_json_object, regular_file
from curconvert.checkpoint.types import ByteRange, TensorInfo
from curconvert_runtime.format import tensor_file
from curconvert_runtime.format.tensor_file import TensorHeader

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
# Enough for about 20,000 tensors. Parsing needs twenty times the text's size, so more would be slow and fill memory.
HEADER_LIMIT = INDEX_LIMIT = 2_000_000

NAME_LIMIT = 200  # characters of the name of a tensor or a shard; messages repeat it

DTYPES: Mapping[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# All dtypes of the format, so that an unsupported one is reported by name and not as damage.
_ITEM_BITS = tensor_file.ITEM_BITS | {
    "U16": 16, "U32": 32, "U64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
_QUANTIZED_SUFFIXES = (".qweight", ".qzeros", ".scales", ".g_idx", ".weight_scale", ".weight_scale_inv", ".absmax")


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return names, shapes and byte ranges of a safetensors file, without reading tensor data.

    Raises:
        InputError: The file is not valid safetensors.
        UnsupportedError: It holds quantized or otherwise unsupported dtypes.
    """
    regular_file(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or _one_line(error)}") from None
    if length > HEADER_LIMIT:
        raise InputError(
            f"{path}: the header's length is {length} bytes, expected at most {HEADER_LIMIT}; "
            "the file is damaged or holds no language model"
        )
    try:
        headers = tensor_file.read_headers(path, _ITEM_BITS)
    except IntegrityError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise InputError(f"{path}: not a valid safetensors file: {reason}") from None
    return {name: _tensor_info(header) for name, header in headers.items()}


def _tensor_info(header: TensorHeader) -> TensorInfo:
    path, name, dtype = header.file, header.name, header.dtype
    if len(name) > NAME_LIMIT:
        raise InputError(f"{path}: a tensor's name has {len(name)} characters, expected at most {NAME_LIMIT}")
    if name.endswith(_QUANTIZED_SUFFIXES):
        raise UnsupportedError(f"{path}: tensor {name} belongs to a quantized checkpoint; use the unquantized one")
    # Legacy buffers are dropped later, so their dtype does not matter. All other tensors are weights.
    if dtype not in DTYPES and not is_legacy_buffer(name):
        advice = "convert it to float32" if dtype == "F64" else "quantized and integer weights are not supported"
        raise UnsupportedError(f"{path}: tensor {name} has dtype {dtype}, expected F32, F16 or BF16; {advice}")
    return TensorInfo(name, dtype, header.shape, ByteRange(path, header.offset, header.length))


def is_legacy_buffer(name: str) -> bool:
    """Tell whether a tensor is a rotary table, which old versions saved although models compute it."""
    return name.endswith(".rotary_emb.inv_freq")


def read_headers(paths: Iterable[Path]) -> dict[str, TensorInfo]:
    """Return the tensors of several files as one table.

    Raises:
        InputError: A tensor is in two files, or a file is invalid.
    """
    tensors: dict[str, TensorInfo] = {}
    for path in paths:
        for name, info in read_header(path).items():
            if name in tensors:
                first = tensors[name].location
                raise InputError(f"{path}: tensor {name} is also in {first.file.name if first else 'another file'}")
            tensors[name] = info
    return tensors


def read_index(folder: ModelFolder) -> tuple[tuple[Path, ...], dict[str, TensorInfo]]:
    """Return the shards of a checkpoint with an index file, sorted by name, and all their tensors.

    Raises:
        InputError: The index names files outside the folder, or contradicts the shards.
    """
    path = folder.regular(INDEX_NAME)
    if path is None:
        raise InputError(f"{folder.path / INDEX_NAME}: no such file")
    weight_map = load_json_object(path, INDEX_LIMIT).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{path}: weight_map is missing or empty")
    for name, shard in weight_map.items():
        if not _is_plain_name(shard):
            raise InputError(
                f"{path}: tensor {name!r:.200} is in {shard!r:.60}, expected the name of a .safetensors file"
            )
    shards = {shard: folder.regular(shard) for shard in sorted(set(weight_map.values()))}
    for shard, file in shards.items():
        if file is None:
            raise InputError(f"{path}: shard {shard:.200} is missing from the folder")
    files = tuple(file for file in shards.values() if file is not None)
    tensors = read_headers(files)
    for name, shard in weight_map.items():
        location = tensors[name].location if name in tensors else None
        if location is None or location.file.name != shard:
            raise InputError(f"{path}: tensor {name:.200} is not in {shard:.200}, where the index places it")
    if extra := sorted(tensors.keys() - weight_map.keys()):
        raise InputError(f"{path}: tensor {extra[0]} is in a shard but not in the index ({len(extra)} such tensors)")
    return files, tensors


def _is_plain_name(value: object) -> bool:
    """Tell whether a value is a `.safetensors` file name without a path, on any operating system."""
    return (
        isinstance(value, str)
        and value.endswith(".safetensors")
        and not any(character in value for character in "/\\:\0")
        and not value.startswith("..")
        and len(value) <= NAME_LIMIT
    )


def map_tensor(info: TensorInfo) -> torch.Tensor:
    """Return a tensor that is a memory map of its bytes.

    Each tensor has its own mapping, so dropping the tensor releases its memory. The mapping is private, because torch
    has no read-only tensors, and an accidental write must not change the file.

    Raises:
        InputError: The file changed since its header was read.
    """
    location = info.location
    if location is None:
        raise ValueError(f"tensor {info.name} is not stored as raw bytes")
    start = location.offset - location.offset % mmap.ALLOCATIONGRANULARITY
    length = location.offset + location.length - start
    try:
        with location.file.open("rb") as file:
            mapping = mmap.mmap(file.fileno(), length, offset=start, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        raise InputError(f"{location.file}: tensor {info.name} cannot be read: {_one_line(error)}") from None
    dtype = DTYPES[info.dtype]
    count = location.length // dtype.itemsize
    return torch.frombuffer(mapping, dtype=dtype, count=count, offset=location.offset - start).view(info.shape)


def prefetch(tensors: Iterable[TensorInfo]) -> None:
    """Ask the system to read tensors into its file cache, without waiting for it."""
    if not hasattr(os, "posix_fadvise"):
        return
    for info in tensors:
        if location := info.location:
            with (
                contextlib.suppress(OSError),
                location.file.open("rb") as file,
            ):  # a later read reports the error
                os.posix_fadvise(file.fileno(), location.offset, location.length, os.POSIX_FADV_WILLNEED)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
