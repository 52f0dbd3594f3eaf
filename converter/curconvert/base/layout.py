"""Builds the header of a safetensors file from its tensors' dtypes and shapes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SAFETENSORS_DTYPES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int32: "I32", torch.int64: "I64",
    torch.uint8: "U8",
}  # fmt: skip


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that will be written.

    Attributes:
        name: Its name.
        dtype: Stored dtype.
        shape: Its shape.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def encoded_header(specs: Iterable[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Return the first bytes of a safetensors file. The tensors' bytes must follow in the order of `specs`."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for spec in specs:
        offsets = [offset, offset + spec.nbytes]
        header[spec.name] = {
            "dtype": SAFETENSORS_DTYPES[spec.dtype], "shape": list(spec.shape), "data_offsets": offsets
        }  # fmt: skip
        offset += spec.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return a tensor's bytes in the order of its elements; copy only a tensor that is not contiguous."""
    # View the tensor as bytes, because NumPy has no bfloat16.
    found: memoryview = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
    return found
