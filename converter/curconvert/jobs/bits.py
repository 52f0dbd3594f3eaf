"""Which matrices are stored in 4 bits and which in 8: each is rounded both ways, and what that costs is measured.

The cost of an error E of a linear is `½ Σ_i E[g_i²] e_i H e_iᵀ`, its divergence to second order as the allocation
counts it, but output by output: g is the gradient of the log-likelihood there, and `E[g_i²]` is taken from the Fisher
information of row i of the weight, over `E‖x‖²`. A head's outputs are logits, and the mean of `p_i` stands for
`E[g_i²]`: how often token i occurs in the calibration text. An embedding of its own multiplies nothing, so nothing is
known of what its errors cost; it is widened last. Without a calibration text the cost is the squared error of the
numbers themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from curconvert.base.names import layer_of
from curconvert.base.packing import packed_bytes
from curconvert.base.plan import MatrixPlan, Plan
from curconvert.base.types import Vector
from curconvert.calibration.text import CalibrationTokens
from curconvert.checkpoint.types import Checkpoint
from curconvert.families.skeleton import EMBEDDING, HEAD
from curconvert.journal.store import State
from curconvert.linalg.statistics import InputStatistics
from curconvert.methods.core.block import factorized
from curconvert.methods.core.context import Context
from curconvert.methods.core.method import Method
from curconvert.methods.core.quantized import quantization_tasks
from curconvert.options.quantization import Quantization
from curconvert.quantization.bits import RoundingCost, RoundingTask, chosen_bits, weighted
from curconvert.quantization.rounding import quantize
from curconvert.quantization.tensors import TABLES, quantized_shapes, relative_error
from curconvert_runtime.checks.fidelity import Progress
from curconvert_runtime.format.quantized import BITS

_STAGE = "widths"
_ROWS = 8192  # of a table, in float64 at once


def check_bits(quantization: Quantization, checkpoint: Checkpoint, decided: Plan | None) -> None:
    """Refuse a budget below what all matrices take at 4 bits, or above what they take at 8; raises InputError.

    Args:
        quantization: The budget.
        checkpoint: The original.
        decided: Form and rank of its matrices; None for a model that is not compressed.
    """
    sizes, numbers = _sizes(quantization, checkpoint, decided)
    quantization.check_budget(*(sum(size[i] for size in sizes.values()) / numbers for i in range(len(BITS))))


def _sizes(
    quantization: Quantization, checkpoint: Checkpoint, decided: Plan | None
) -> tuple[dict[str, list[int]], int]:
    """Return the bits of each matrix at each width, by its name, and the numbers of all of them."""
    shapes = quantized_shapes(checkpoint, decided)
    layouts = [quantization.single(bits).layout for bits in BITS]
    sizes = {
        name: [8 * sum(packed_bytes(layout, shape) for shape in stored.values()) for layout in layouts]
        for name, stored in shapes.items()
    }
    return sizes, sum(rows * columns for stored in shapes.values() for rows, columns in stored.values())


def with_bits(
    quantization: Quantization, checkpoint: Checkpoint, decided: Plan | None, measured: Sequence[RoundingCost]
) -> Quantization:
    """Choose each matrix's width.

    Args:
        quantization: The budget, see `check_bits`.
        checkpoint: The original.
        decided: Form and rank of its matrices; None for a model that is not compressed.
        measured: Every quantized matrix.
    """
    sizes, numbers = _sizes(quantization, checkpoint, decided)
    assert quantization.bits_per_weight is not None
    together = dict.fromkeys(m.shared.matrices for m in decided.matrices if m.shared) if decided else {}
    widths = chosen_bits(measured, sizes, list(together), quantization.bits_per_weight * numbers)
    return replace(quantization, widths=widths)


def measured_costs(
    method: Method, decided: Plan, head: InputStatistics, quantization: Quantization, context: Context
) -> list[RoundingCost]:
    """Round every matrix at each width, as it would be stored, factors included, and measure.

    Args:
        method: Of compression.
        decided: Form and rank of every matrix.
        head: Statistics of the head's input.
        quantization: What is asked for.
        context: The conversion; its evidence has statistics and Fisher information of every linear of the original.
    """
    checkpoint, journal = context.checkpoint, context.journal
    layers = int(checkpoint.config["num_hidden_layers"])
    found: list[RoundingCost] = []
    done = 0
    if state := journal.recall(_STAGE):
        done = state.data["blocks"]
        found = [RoundingCost.from_json(row) for row in state.data["found"]]
    for layer in range(done, layers):
        plans = [plan for plan in decided.matrices if layer_of(plan.name) == layer]
        found += _block_costs(method, plans, quantization, context)
        journal.record(_STAGE, State({"blocks": layer + 1, "found": [row.to_json() for row in found]}))
        context.progress(_STAGE, layer + 1, layers)
    return [*_table_costs(checkpoint, context.tokens, head, quantization), *found]


def _block_costs(
    method: Method, plans: Sequence[MatrixPlan], quantization: Quantization, context: Context
) -> list[RoundingCost]:
    evidence = context.evidence
    collected = evidence.statistics_of(plan.name for plan in plans)
    factors = factorized(method, plans, collected, context)
    widths = (quantization_tasks(quantization.single(bits), plans, factors, collected, context) for bits in BITS)
    tasks = (
        RoundingTask(same, evidence.fisher_rows(name) / max(2 * float(collected[name].diagonal.sum()), 1e-300))
        for same in zip(*widths, strict=True)
        for name in [same[0].name]
    )
    return context.executor.map(tasks)


def _table_costs(
    checkpoint: Checkpoint, tokens: CalibrationTokens, head: InputStatistics, quantization: Quantization
) -> list[RoundingCost]:
    """Measure embedding and head as they are rounded: by the head's inputs, where they multiply these."""
    multiplied = HEAD if HEAD in checkpoint.tensors else EMBEDDING
    found = []
    for name in TABLES:
        if name not in checkpoint.tensors:
            continue
        weight = checkpoint.read(name)
        if name != multiplied:
            errors = [relative_error(weight, quantize(name, weight, quantization.single(b).layout)) for b in BITS]
            found.append(RoundingCost(name, tuple(errors), (0.0,) * len(BITS)))
            continue
        seen = np.bincount(tokens.calibration.ravel(), minlength=len(weight)) / tokens.calibration.size
        pairs = [_head_cost(name, weight, head, seen / 2, quantization.single(bits)) for bits in BITS]
        found.append(RoundingCost(name, *(tuple(values) for values in zip(*pairs, strict=True))))
    return found


def _head_cost(
    name: str, weight: torch.Tensor, head: InputStatistics, importance: Vector, quantization: Quantization
) -> tuple[float, float]:
    """Return relative output error and cost."""
    gram = head.gram
    stored = quantize(name, weight, quantization.layout, gram if quantization.uses_statistics else None)
    cost = error = whole = 0.0
    for start in range(0, len(weight), _ROWS):
        rows = slice(start, start + _ROWS)
        part = weight[rows].double().numpy()
        lost, each = part - stored.rows(rows).double().numpy(), np.ones(len(part))
        cost += weighted(lost, gram, importance[rows])
        error, whole = error + weighted(lost, gram, each), whole + weighted(part, gram, each)
    return (error / whole) ** 0.5 if whole > 0 else 0.0, cost


def exported_costs(checkpoint: Checkpoint, quantization: Quantization, progress: Progress) -> list[RoundingCost]:
    """Round every matrix of an uncompressed model to the nearest at each width, and measure.

    Args:
        checkpoint: The original.
        quantization: What is asked for.
        progress: Called after each matrix.
    """
    found: list[RoundingCost] = []
    names = quantized_shapes(checkpoint, None)
    for done, name in enumerate(names, 1):
        weight = checkpoint.read(name)
        energy = float(torch.linalg.vector_norm(weight, dtype=torch.float64)) ** 2
        layouts = [quantization.single(bits).layout for bits in BITS]
        errors = tuple(relative_error(weight, quantize(name, weight, layout)) for layout in layouts)
        found.append(RoundingCost(name, errors, tuple(error**2 * energy for error in errors)))
        progress(_STAGE, done, len(names))
    return found
