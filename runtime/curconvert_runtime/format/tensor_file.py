"""Reads safetensors files strictly: the tensors must cover the file without a gap or an overlap."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curconvert_runtime.errors import IntegrityError, reading
from curconvert_runtime.format import strict_json

# NumPy has no bfloat16, so its bits are read as uint16 and widened to float32.
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(code)
    for name, code in (
        ("F64", "<f8"), ("F32", "<f4"), ("F16", "<f2"), ("BF16", "<u2"),
        ("I64", "<i8"), ("I32", "<i4"), ("I16", "<i2"), ("I8", "i1"), ("U8", "u1"), ("BOOL", "?"),
    )
}  # fmt: skip
ITEM_BITS = {name: 8 * dtype.itemsize for name, dtype in DTYPES.items()}
STORED_DTYPE = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Maps a model dtype from the manifest's spelling to safetensors'."""
MAX_HEADER_BYTES = 4_000_000  # 30,000 tensors, three times those of an artifact with 126 layers


@dataclass(frozen=True)
class TensorHeader:
    """Position, dtype and shape of one stored tensor.

    Attributes:
        name: Tensor name, exactly as stored (untrusted text).
        dtype: safetensors spelling, a key of `DTYPES`.
        shape: Dimensions.
        file: File that holds the bytes.
        offset, length: First byte, from the start of the file, and number of bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    length: int


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _tensor(name: str, entry: object, path: Path, data_start: int, item_bits: Mapping[str, int]) -> TensorHeader:
    where = f"{path}: tensor {name[:200]!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise IntegrityError(f"{where}: expected exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in item_bits:
        raise IntegrityError(f"{where}: unknown dtype {dtype!r:.40}")
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        raise IntegrityError(f"{where}: shape must be a list of non-negative integers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise IntegrityError(f"{where}: data_offsets must be two non-negative integers")
    begin, end = offsets
    bits = math.prod(shape) * item_bits[dtype]
    if 8 * (end - begin) != bits:
        raise IntegrityError(f"{where}: {dtype} {shape} needs {-(-bits // 8)} bytes, data_offsets span {end - begin}")
    return TensorHeader(name, dtype, tuple(shape), path, data_start + begin, end - begin)


def read_headers(path: Path, item_bits: Mapping[str, int] = ITEM_BITS) -> dict[str, TensorHeader]:
    """Return the header of every tensor by name, in the order of their bytes.

    Args:
        path: The file.
        item_bits: Bits per element of each allowed dtype.

    Raises:
        IntegrityError: The file breaks a rule of the format. The tensors' contents are not read.
    """
    with reading(path), path.open("rb") as file:
        size, prefix = path.stat().st_size, file.read(8)
        header_length, limit = int.from_bytes(prefix, "little"), min(size - 8, MAX_HEADER_BYTES)
        if len(prefix) < 8 or header_length > limit:
            raise IntegrityError(
                f"{path}: header length {header_length}, expected at most {limit} in this file of {size} bytes; "
                "the file is truncated or not safetensors"
            )
        raw = file.read(header_length)
    header = strict_json.parse(raw, f"{path}: safetensors header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise IntegrityError(f"{path}: __metadata__ must map strings to strings")
    data_start = 8 + header_length
    tensors = [_tensor(name, entry, path, data_start, item_bits) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.length))
    position = data_start
    for tensor in tensors:
        if tensor.offset != position:
            fault = "overlaps the tensor before it" if tensor.offset < position else "leaves a hole before it"
            raise IntegrityError(f"{path}: tensor {tensor.name[:200]!r} {fault} (byte {tensor.offset})")
        position += tensor.length
    if position != size:
        raise IntegrityError(
            f"{path}: tensors end at byte {position}, the file has {size}; it is truncated or extended"
        )
    return {tensor.name: tensor for tensor in tensors}


def read_tensor(tensor: TensorHeader) -> NDArray[Any]:
    """Return the tensor, memory-mapped read-only; a BF16 tensor is widened to a float32 copy."""
    dtype = DTYPES[tensor.dtype]
    if tensor.length == 0:
        return np.zeros(tensor.shape, dtype)
    # mmap needs a page-aligned start; np.memmap accepts any offset.
    array: NDArray[Any] = np.memmap(tensor.file, dtype, "r", offset=tensor.offset, shape=tensor.shape)
    if tensor.dtype == "BF16":
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array
