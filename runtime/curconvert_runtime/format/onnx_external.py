"""Finds the external data of an ONNX graph without the `onnx` package.

onnxruntime opens any file that a graph's initializers name. So every external tensor is listed and checked before.
"""

from __future__ import annotations

from pathlib import Path

from curconvert_runtime.errors import IntegrityError, reading, unsound
from curconvert_schemas.graph import MAX_BYTES, ExternalTensor, read_graph

__all__ = ["ExternalTensor", "external_tensors"]


def external_tensors(path: Path) -> list[ExternalTensor]:
    """Return every externally stored tensor of a graph file.

    Raises:
        IntegrityError: No graph that curconvert writes looks like this.
    """
    with reading(path), path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise IntegrityError(f"{path}: larger than {MAX_BYTES} bytes, the limit of a graph; copy the file again")
    try:
        return read_graph(data).tensors
    except ValueError as error:
        raise unsound(path, f"not a sound ONNX graph ({error})") from None
