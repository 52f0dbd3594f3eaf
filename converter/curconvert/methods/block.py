"""One block's matrices: factorized, quantised, installed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from curconvert.base.plan import MatrixPlan
from curconvert.blocks.linears import factored_linear
from curconvert.blocks.stream import Block
from curconvert.calibration.evidence import Evidence
from curconvert.checkpoint.types import Checkpoint
from curconvert.execution.task import Executor
from curconvert.factorization.types import Factorization
from curconvert.families.heads import Heads
from curconvert.linalg.statistics import InputStatistics
from curconvert.methods.checked import FactorTask, allocated_tasks, block_tasks, learned_tasks
from curconvert.methods.quantised import quantisation_tasks
from curconvert.options.convert import ConvertOptions


def factors_of(
    executor: Executor,
    plans: Sequence[MatrixPlan],
    collected: Mapping[str, InputStatistics] | None,
    checkpoint: Checkpoint,
    heads: Heads | None,
    options: ConvertOptions,
    dtype: torch.dtype,
    evidence: Evidence,
) -> dict[str, Factorization]:
    """Factorize some of a block's matrices and then, where that is asked for, quantise them and its dense ones."""
    if collected is None:  # auto's own tasks read what they need
        needless = options.form == "auto" and not options.quantization
        collected = {} if needless else evidence.statistics_of(plan.name for plan in plans)
    found = factorized(executor, plans, collected, checkpoint, heads, options, dtype, evidence)
    if options.quantization:
        found = _run(executor, quantisation_tasks(plans, found, collected, checkpoint, options, dtype, evidence))
    return found


def factorized(
    executor: Executor,
    plans: Sequence[MatrixPlan],
    collected: Mapping[str, InputStatistics],
    checkpoint: Checkpoint,
    heads: Heads | None,
    options: ConvertOptions,
    dtype: torch.dtype,
    evidence: Evidence,
) -> dict[str, Factorization]:
    """Factorize some of a block's matrices.

    Args:
        executor: Works on them side by side.
        plans: Of linears; the dense ones are left out.
        collected: Statistics of their inputs by name; `auto` reads its own.
        checkpoint: Weights and biases.
        heads: The layer's; None where no form is sparse.
        options: Method and numerics.
        dtype: Deployed dtype.
        evidence: What the passes over the original found.
    """
    factored = [plan for plan in plans if plan.form != "dense"]
    if not factored:
        return {}
    if options.form == "auto":
        return _run(executor, allocated_tasks(factored, evidence, checkpoint, options, dtype))
    if options.form == "learned":
        return _run(executor, learned_tasks(factored, evidence, checkpoint, dtype))
    return _run(executor, block_tasks(factored, collected, checkpoint, heads, options, dtype, evidence))


def _run(executor: Executor, tasks: Iterable[FactorTask]) -> dict[str, Factorization]:
    """Work on one block's matrices side by side."""
    return {name: factors for found in executor.map(tasks) for name, factors in found.items()}


def install(block: Block, found: Mapping[str, Factorization]) -> None:
    """Put factored linears in the place of a block's dense ones."""
    for name, factors in found.items():
        linear = block.linears[name]
        assert isinstance(linear, nn.Linear)
        tensors = {suffix: tensor.to(linear.weight.device) for suffix, tensor in factors.tensors.items()}
        block.replace(name, factored_linear(factors.form, tensors, tensors.get("bias", linear.bias)))
