"""Reads safetensors files: headers, byte ranges and memory-mapped tensors."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from curconvert.base.errors import InputError, IntegrityError, UnsupportedError
from curconvert.checkpoint.files import regular_file
from curconvert.checkpoint.source_files import SourceFiles
from curconvert.checkpoint.stand_ins import stand_in
from curconvert.checkpoint.types import ByteRange, TensorInfo
from curconvert_runtime.format import tensor_file
from curconvert_runtime.format.tensor_file import TensorHeader

NAME_LIMIT = 200  # characters of the name of a tensor or a file; messages repeat it

DTYPES: Mapping[str, torch.dtype] = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
STORED: Mapping[str, torch.dtype] = {
    **DTYPES, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "U8": torch.uint8, "I8": torch.int8, "I32": torch.int32, "I64": torch.int64,
}  # fmt: skip
"""Dtypes that are read: those of weights, and those from which quantized weights are computed."""
_QUANTIZED_SUFFIXES = (
    ".qweight", ".qzeros", ".scales", ".g_idx", ".weight_scale", ".weight_scale_inv", ".weight_packed", ".absmax",
    ".SCB", ".quant_map",
)  # fmt: skip
# All dtypes of the format, so that an unsupported one is reported by name and not as damage.
_ITEM_BITS = tensor_file.ITEM_BITS | {
    "U16": 16, "U32": 32, "U64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
_QUANTIZED_DTYPES = ("F8_", "F6_", "F4")


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return names, shapes and byte ranges of a safetensors file, of any dtype, without reading tensor data.

    Raises:
        InputError: The file is not valid safetensors.
    """
    regular_file(path)
    try:
        headers = tensor_file.read_headers(path, _ITEM_BITS)
    except IntegrityError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise InputError(f"{path}: {stand_in(path) or f'not a valid safetensors file: {reason}'}") from None
    return {name: _tensor_info(header) for name, header in headers.items()}


def _tensor_info(header: TensorHeader) -> TensorInfo:
    path, name = header.file, header.name
    if len(name) > NAME_LIMIT:
        raise InputError(f"{path}: a tensor's name has {len(name)} characters, expected at most {NAME_LIMIT}")
    return TensorInfo(name, header.dtype, header.shape, ByteRange(path, header.offset, header.length))


def is_plain(info: TensorInfo) -> bool:
    """Tell whether a tensor is a plain weight: no part of a quantized matrix, and of a dtype of weights."""
    return info.dtype in DTYPES and not info.name.endswith(_QUANTIZED_SUFFIXES)


def refuse_quantized(info: TensorInfo) -> None:
    """Raise `UnsupportedError` if a tensor is a part of a quantized matrix."""
    if info.name.endswith(_QUANTIZED_SUFFIXES):
        raise UnsupportedError(
            f"{_place(info)}tensor {info.name} belongs to a quantized checkpoint, and no quantization_config of a "
            "config.json says how it is stored; give the unquantized model"
        )
    if info.dtype.startswith(_QUANTIZED_DTYPES):
        check_dtype(info)


def check_dtype(info: TensorInfo) -> None:
    """Raise `UnsupportedError` if a tensor of the model has no dtype of weights."""
    if info.dtype not in DTYPES:
        advice = "convert it to float32" if info.dtype == "F64" else "give the unquantized model"
        raise UnsupportedError(
            f"{_place(info)}tensor {info.name} has dtype {info.dtype}, expected F32, F16 or BF16; {advice}"
        )


def _place(info: TensorInfo) -> str:
    return "" if info.location is None else f"{info.location.file}: "


def is_legacy_buffer(name: str) -> bool:
    """Tell whether a tensor is a rotary table, which old versions saved although models compute it."""
    return name.endswith(".rotary_emb.inv_freq")


def read_headers(paths: Iterable[Path]) -> dict[str, TensorInfo]:
    """Return the tensors of one or several files as one table.

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


def map_tensor(info: TensorInfo, files: SourceFiles) -> torch.Tensor:
    """Return a tensor that is a memory map of its bytes.

    Each tensor has its own mapping, so dropping the tensor releases its memory. The mapping is private, because torch
    has no read-only tensors, and an accidental write must not change the file.

    Args:
        info: The tensor.
        files: The files of its checkpoint.

    Raises:
        InputError: The file changed since the checkpoint was opened.
    """
    location = info.location
    if location is None:
        raise ValueError(f"tensor {info.name} is not stored as raw bytes")
    start = location.offset - location.offset % mmap.ALLOCATIONGRANULARITY
    length = location.offset + location.length - start
    try:
        with files.open(location.file) as file:
            mapping = mmap.mmap(file.fileno(), length, offset=start, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        raise InputError(f"{location.file}: tensor {info.name} cannot be read: {_one_line(error)}") from None
    dtype = STORED[info.dtype]
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
