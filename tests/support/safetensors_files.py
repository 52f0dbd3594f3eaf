"""Writes and reads safetensors files with NumPy alone; no bfloat16."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1",
    "BOOL": "?",
}  # fmt: skip
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items()}


def save_file(tensors: Mapping[str, NDArray[Any]], path: Path) -> None:
    """Write arrays, in the order of their names."""
    header: dict[str, Any] = {}
    parts: list[bytes] = []
    position = 0
    for name in sorted(tensors):
        array = np.asarray(tensors[name])
        parts.append(array.tobytes())
        span = [position, position + array.nbytes]
        header[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": span}
        position = span[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligned, as the package writes them
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))


def header_of(path: Path) -> tuple[dict[str, Any], int]:
    """Return a file's header and where its data begin."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), 8 + length


def load_file(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file, copies of their own."""
    header, start = header_of(path)
    data, found = path.read_bytes()[start:], {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        found[name] = np.frombuffer(data[begin:end], _DTYPES[entry["dtype"]]).reshape(entry["shape"]).copy()
    return found
