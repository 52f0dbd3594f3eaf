"""Pointing every weight of a graph at its bytes in the safetensors file."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import onnx_ir as ir

from curconvert.checkpoint.types import TensorInfo
from curconvert.errors import InputError
from curconvert_runtime.forms import PROVENANCE, is_index

DTYPES: Mapping[str, ir.DataType] = {
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
}
INDEX_DTYPE = ir.DataType.INT32


def deployed_dtype(tensors: Mapping[str, TensorInfo]) -> ir.DataType:
    """Return the element type that all weights share.

    Raises:
        InputError: They do not share one, or it is not a float type that graphs support.
    """
    found = {info.dtype: name for name, info in tensors.items() if not is_index(name)}
    if len(found) != 1:
        examples = ", ".join(f"{dtype} ({name})" for dtype, name in sorted(found.items()))
        raise InputError(f"graph: all weights must have one dtype, found {examples or 'no weights'}")
    ((dtype, name),) = found.items()
    if dtype not in DTYPES:
        raise InputError(f"graph: tensor {name} is {dtype}, expected one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def bind(graph: ir.Graph, tensors: Mapping[str, TensorInfo]) -> None:
    """Give every initialiser without a value the byte range of the tensor of its name.

    Raises:
        InputError: A weight of the graph is not stored, has another shape or no byte range, or a stored tensor is not
            used by the graph.
    """
    unused = {name for name in tensors if not name.endswith(PROVENANCE)}
    for name, value in graph.initializers.items():
        if value.const_value is not None:
            continue
        value.const_value = _external(value, tensors)
        unused.discard(name)
    _refuse_unused(unused)


def _external(value: ir.Value, tensors: Mapping[str, TensorInfo]) -> ir.ExternalTensor:
    name = str(value.name)
    info = tensors.get(name)
    if info is None:
        raise InputError(f"graph: weight {name} is not among the stored tensors")
    expected = tuple(value.shape.numpy())
    if info.shape != expected:
        raise InputError(f"graph: tensor {name} has shape {info.shape}, the config asks for {expected}")
    if info.location is None:
        raise InputError(f"graph: tensor {name} has no raw bytes in a file; write it to safetensors first")
    dtype = INDEX_DTYPE if is_index(name) else DTYPES[info.dtype]
    if is_index(name) and info.dtype != "I32":
        raise InputError(f"graph: tensor {name} is {info.dtype}, expected I32")
    size = math.prod(info.shape) * dtype.itemsize
    if info.location.length != size:
        raise InputError(f"graph: tensor {name} has {info.location.length} bytes, its shape asks for {int(size)}")
    return ir.ExternalTensor(
        info.location.file.name,
        info.location.offset,
        info.location.length,
        dtype,
        shape=ir.Shape(info.shape),
        name=name,
        base_dir=info.location.file.parent,
    )


def _refuse_unused(unused: Collection[str]) -> None:
    if unused:
        names = sorted(unused)
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise InputError(f"graph: stored tensors that the model does not use: {shown}")
