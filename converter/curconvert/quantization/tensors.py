"""Lists the quantized tensors of an artifact, and quantizes the embedding and the lm_head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from curconvert.base.packing import packed_bytes
from curconvert.base.plan import Plan
from curconvert.blocks.quantized import Quantized
from curconvert.checkpoint.linears import decoder_linears
from curconvert.checkpoint.types import Checkpoint
from curconvert.families.skeleton import EMBEDDING, HEAD
from curconvert.linalg.statistics import InputStatistics
from curconvert.options.quantization import Quantization
from curconvert.quantization.bits import RoundingCost
from curconvert.quantization.rounding import quantize
from curconvert_runtime.format.forms.form import factor_name
from curconvert_runtime.format.quantized import Packing

TABLES = (EMBEDDING, HEAD)


def quantized_tensors(checkpoint: Checkpoint, decided: Plan | None, quantization: Quantization) -> dict[str, Packing]:
    """Return the shape and layout of each quantized tensor by name: factors, dense linears, embedding and lm_head.

    Norms and biases stay float, and so does a small U of C·U·R.

    Args:
        checkpoint: The original.
        decided: Form and rank of its matrices; None for a model that is not compressed.
        quantization: The requested quantization, with widths chosen.
    """
    return {
        tensor: Packing(shape, quantization.of_matrix(name).layout)
        for name, stored in quantized_shapes(checkpoint, decided).items()
        for tensor, shape in stored.items()
    }


def quantized_shapes(checkpoint: Checkpoint, decided: Plan | None) -> dict[str, dict[str, tuple[int, int]]]:
    """Return the shapes of the quantized tensors, by the weight's name and then by the stored tensor's name."""
    plans = {matrix.name: matrix for matrix in decided.matrices} if decided else {}
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for name in TABLES:
        if name in checkpoint.tensors:
            rows, columns = checkpoint.tensors[name].shape
            found[name] = {name: (rows, columns)}
    for name, shape in decoder_linears(checkpoint).items():
        plan = plans.get(name)
        if plan is None or plan.rank is None:
            found[name] = {name: shape}
            continue
        shapes = plan.entry.shapes(shape, plan.rank, plan.shared)
        stored = [suffix for suffix in plan.traits.quantized(plan.rank) if plan.stores(suffix)]
        found[name] = {factor_name(name, suffix): shapes[suffix] for suffix in stored}
    return found


@dataclass(frozen=True)
class Tables:
    """Holds the quantized embedding and lm_head.

    Attributes:
        quantized: By name; empty without quantization.
        errors: `‖W − Ŵ‖_F / ‖W‖_F` of each.
    """

    quantized: Mapping[str, Quantized] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)


def quantized_tables(checkpoint: Checkpoint, quantization: Quantization, head: InputStatistics | None = None) -> Tables:
    """Quantize the embedding and the lm_head.

    The lm_head uses error feedback with its input statistics, also if it is tied to the embedding: errors of embedding
    rows cost far less than errors of the lm_head. A separate embedding uses round to nearest.

    Args:
        checkpoint: The original.
        quantization: The requested quantization.
        head: Statistics of the lm_head's input; None selects round to nearest.
    """
    multiplied = HEAD if HEAD in checkpoint.tensors else EMBEDDING
    found, errors = {}, {}
    for name in TABLES:
        if name in checkpoint.tensors:
            weight = checkpoint.read(name)
            gram = head.gram if head and quantization.uses_statistics and name == multiplied else None
            found[name] = quantize(name, weight, quantization.of_matrix(name).layout, gram)
            errors[name] = relative_error(weight, found[name])
    return Tables(found, errors)


def relative_error(weight: Tensor, quantized: Quantized, rows: int = 8192) -> float:
    """Return `‖W − Ŵ‖_F / ‖W‖_F`, computed `rows` rows at a time."""
    error = whole = 0.0
    for start in range(0, len(weight), rows):
        part = weight[start : start + rows].to(torch.float64)
        error += float((part - quantized.rows(slice(start, start + rows))).square().sum())
        whole += float(part.square().sum())
    return (error / whole) ** 0.5 if whole > 0 else 0.0


def quantization_json(
    quantization: Quantization,
    tensors: Mapping[str, Packing],
    errors: Mapping[str, float],
    measured: Sequence[RoundingCost] = (),
) -> dict[str, Any]:
    """Return the manifest's description of the quantized tensors.

    Args:
        quantization: The requested quantization.
        tensors: Shape and layout by name.
        errors: Relative Frobenius errors of the tensors outside decoder linears; `matrices` has the errors of those.
        measured: The costs that decided mixed widths.
    """
    layout, mixed = quantization.layout, quantization.mixed

    def row(name: str, packing: Packing) -> dict[str, Any]:
        own = {"bits": packing.layout.bits, "block_size": packing.layout.block_size} if mixed else {}
        error = errors.get(name)
        return {"name": name, "shape": list(packing.shape), **own, "relative_frobenius_error": error}

    chosen = {
        "bits_per_weight": quantization.bits_per_weight,
        "widths": [found.to_json((quantization.widths or {})[found.name]) for found in measured],
    }
    return {
        "bits": layout.bits, "block_size": layout.block_size, "symmetric": layout.symmetric,
        "scale_dtype": layout.scale_dtype, "rounding": quantization.rounding,
        "parameters": sum(packing.numbers for packing in tensors.values()),
        "bytes": sum(packed_bytes(packing.layout, packing.shape) for packing in tensors.values()),
        **(chosen if mixed else {}),
        "tensors": [row(name, packing) for name, packing in sorted(tensors.items())],
    }  # fmt: skip


UNQUANTIZED = Tables()
