"""Makes every weight of a graph point to its bytes in the safetensors file."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import onnx_ir as ir

from curconvert.base.errors import InputError
from curconvert.checkpoint.types import TensorInfo
from curconvert.families.skeleton import EMBEDDING, HEAD
from curconvert_runtime.format.forms.form import PROVENANCE, is_index

DTYPES: Mapping[str, ir.DataType] = {
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
}
INDEX_DTYPE = ir.DataType.INT32
PACKED_DTYPES = (ir.DataType.UINT8, ir.DataType.UINT4)


def deployed_dtype(tensors: Mapping[str, TensorInfo], packed: Collection[str] = ()) -> ir.DataType:
    """Return the common element type of all weights.

    Args:
        tensors: The stored tensors.
        packed: Names of the parts of quantized matrices, which are not checked.

    Raises:
        InputError: The types differ, or graphs do not support the type.
    """
    found = {info.dtype: name for name, info in tensors.items() if not is_index(name) and name not in packed}
    if len(found) != 1:
        examples = ", ".join(f"{dtype} ({name})" for dtype, name in sorted(found.items()))
        raise InputError(f"graph: all weights must have one dtype, found {examples or 'no weights'}")
    ((dtype, name),) = found.items()
    if dtype not in DTYPES:
        raise InputError(f"graph: tensor {name} is {dtype}, expected one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def bind(graph: ir.Graph, tensors: Mapping[str, TensorInfo]) -> None:
    """Give every initializer without a value the byte range of the stored tensor with its name.

    Raises:
        InputError: A weight is not stored, or has another shape or no byte range; or the graph does not use a stored
            tensor.
    """
    unused = {name for name in tensors if not name.endswith(PROVENANCE)}
    for name, value in graph.initializers.items():
        if value.const_value is not None:
            continue
        value.const_value = _external(value, tensors)
        unused.discard(source_of(name, tensors))
    _refuse_unused(unused)


def source_of(name: str, tensors: Collection[str]) -> str:
    """Return the name of the stored tensor that an initializer reads.

    Initializers of a tied, quantized lm_head read the embedding's parts. They have separate names, because the product
    needs the parts in another shape than the look-up.
    """
    if name.startswith(f"{HEAD}.") and name not in tensors:
        return f"{EMBEDDING}{name.removeprefix(HEAD)}"
    return name


def _external(value: ir.Value, tensors: Mapping[str, TensorInfo]) -> ir.ExternalTensor:
    name = source_of(str(value.name), tensors)
    info = tensors.get(name)
    if info is None:
        raise InputError(f"graph: weight {name} is not among the stored tensors")
    expected = tuple(value.shape.numpy())
    # Look-ups and products read the same packed bytes with different shapes, so only the number of rows must agree.
    packed = info.dtype == "U8" and value.dtype in PACKED_DTYPES and info.shape[:1] == expected[:1]
    if info.shape != expected and not packed:
        raise InputError(f"graph: tensor {name} has shape {info.shape}, the config needs {expected}")
    if info.location is None:
        raise InputError(f"graph: tensor {name} has no raw bytes in a file; write it to safetensors first")
    dtype = value.dtype if value.dtype in (INDEX_DTYPE, *PACKED_DTYPES) else DTYPES.get(info.dtype)
    stored = "I32" if dtype == INDEX_DTYPE else "U8" if dtype in PACKED_DTYPES else info.dtype
    if dtype is None or info.dtype != stored:
        raise InputError(f"graph: tensor {name} is {info.dtype}, expected {stored if dtype else 'a float'}")
    size = math.prod(expected) * dtype.itemsize
    if info.location.length != size:
        raise InputError(f"graph: tensor {name} has {info.location.length} bytes, its shape needs {int(size)}")
    return ir.ExternalTensor(
        info.location.file.name,
        info.location.offset,
        info.location.length,
        dtype,
        shape=ir.Shape(expected),
        name=str(value.name),
        base_dir=info.location.file.parent,
    )


def _refuse_unused(unused: Collection[str]) -> None:
    if unused:
        names = sorted(unused)
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise InputError(f"graph: stored tensors that the model does not use: {shown}")
