"""Chooses the bits in which each matrix is stored. Measures what rounding each matrix costs at every width.

The cost of an error E of a linear is `½ Σ_i E[g_i²] e_i H e_iᵀ`, the KL divergence to second order, summed over the
outputs. g is the gradient of the log-likelihood with respect to the outputs. `E[g_i²]` is the Fisher information of
row i of the weight, divided by `E‖x‖²`. For the lm_head, whose outputs are logits, the share of token i in the
calibration text replaces `E[g_i²]`. An untied embedding multiplies no input, so its cost is unknown: a relative error
is taken to cost what it costs in the most sensitive matrix. Without a calibration text, the cost is the squared error
of the weights.
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
from curconvert.quantization.tensors import quantized_shapes, relative_error
from curconvert_runtime.checks.fidelity import Progress
from curconvert_runtime.format.quantized import BITS

_STAGE = "widths"
_ROWS = 8192  # rows of embedding or lm_head that are in float64 at a time


def check_bits(quantization: Quantization, checkpoint: Checkpoint, decided: Plan | None) -> None:
    """Raise `InputError` if the budget is less than all matrices need at 3 bits, or more than they need at 8.

    Args:
        quantization: The budget.
        checkpoint: The original.
        decided: Form and rank of its matrices; None for an uncompressed model.
    """
    sizes, numbers = _sizes(quantization, checkpoint, decided)
    quantization.check_budget(*(sum(size[i] for size in sizes.values()) / numbers for i in (0, -1)))


def _sizes(
    quantization: Quantization, checkpoint: Checkpoint, decided: Plan | None
) -> tuple[dict[str, list[int]], int]:
    """Return the stored size of each matrix in bits at each width, by name, and the number of all weights."""
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
    """Return the quantization with the bits chosen for each matrix.

    Args:
        quantization: The budget, see `check_bits`.
        checkpoint: The original.
        decided: Form and rank of its matrices; None for an uncompressed model.
        measured: Rounding costs of every quantized matrix.
    """
    sizes, numbers = _sizes(quantization, checkpoint, decided)
    assert quantization.bits_per_weight is not None
    together = dict.fromkeys(m.shared.matrices for m in decided.matrices if m.shared) if decided else {}
    widths = chosen_bits(measured, sizes, list(together), quantization.bits_per_weight * numbers)
    return replace(quantization, widths=widths)


def measured_costs(
    method: Method, decided: Plan, head: InputStatistics, quantization: Quantization, context: Context
) -> list[RoundingCost]:
    """Return the costs of rounding every matrix, or its factors, to each width.

    Args:
        method: The compression method.
        decided: Form and rank of every matrix.
        head: Statistics of the lm_head's input.
        quantization: Rounding, block size and budget.
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
    return [*_table_costs(checkpoint, context.tokens, head, quantization, found), *found]


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
    checkpoint: Checkpoint,
    tokens: CalibrationTokens,
    head: InputStatistics,
    quantization: Quantization,
    linears: Sequence[RoundingCost],
) -> list[RoundingCost]:
    """Return the costs of embedding and lm_head; the lm_head's are measured on its inputs."""
    multiplied = HEAD if HEAD in checkpoint.tensors else EMBEDDING
    weight = checkpoint.read(multiplied)
    seen = np.bincount(tokens.calibration.ravel(), minlength=len(weight)) / tokens.calibration.size
    pairs = [_head_cost(multiplied, weight, head, seen / 2, quantization.single(bits)) for bits in BITS]
    found = [RoundingCost(multiplied, *(tuple(values) for values in zip(*pairs, strict=True)))]
    if multiplied != EMBEDDING:
        weight = checkpoint.read(EMBEDDING)
        errors = [relative_error(weight, quantize(EMBEDDING, weight, quantization.single(b).layout)) for b in BITS]
        dearest = max(row.costs[0] / row.errors[0] ** 2 for row in (*found, *linears) if row.errors[0] > 0)
        found.insert(0, RoundingCost(EMBEDDING, tuple(errors), tuple(dearest * error**2 for error in errors)))
    return found


def _head_cost(
    name: str, weight: torch.Tensor, head: InputStatistics, importance: Vector, quantization: Quantization
) -> tuple[float, float]:
    """Return relative output error and cost of rounding the lm_head."""
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
    """Return the costs of rounding every matrix of an uncompressed model to each width by round to nearest.

    Args:
        checkpoint: The original.
        quantization: Block size and budget.
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
