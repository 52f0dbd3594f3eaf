"""Factorizes and quantizes one block's matrices, and installs the result in the block."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from curconvert.base.plan import MatrixPlan
from curconvert.blocks.linears import factored_linear
from curconvert.blocks.stream import Block
from curconvert.execution.task import Executor
from curconvert.factorization.types import Factorization, FactorTask
from curconvert.linalg.statistics import InputStatistics
from curconvert.methods.core.context import Context
from curconvert.methods.core.method import Method
from curconvert.methods.core.quantized import quantization_tasks


def compressed(
    method: Method, plans: Sequence[MatrixPlan], statistics: Mapping[str, InputStatistics] | None, context: Context
) -> dict[str, Factorization]:
    """Factorize some of a block's matrices, and quantize these and the dense ones if quantization is on.

    Args:
        method: The compression method.
        plans: Plans of linears of the block.
        statistics: Statistics of their inputs by name; None reads them from the evidence.
        context: The conversion.

    Returns:
        Factors by weight name.
    """
    quantization = context.settings.quantization
    if statistics is None:
        read = quantization is not None or not method.reads_evidence
        statistics = context.evidence.statistics_of(plan.name for plan in plans) if read else {}
    found = factorized(method, plans, statistics, context)
    if quantization is not None:
        found = _run(context.executor, quantization_tasks(quantization, plans, found, statistics, context))
    return found


def factorized(
    method: Method, plans: Sequence[MatrixPlan], statistics: Mapping[str, InputStatistics], context: Context
) -> dict[str, Factorization]:
    """Return the factors of a block's planned matrices by weight name, without the dense ones.

    Args:
        method: The compression method.
        plans: Plans of linears of the block.
        statistics: Statistics of their inputs by name.
        context: The conversion.
    """
    smaller = [plan for plan in plans if plan.is_compressed]
    return _run(context.executor, method.tasks(smaller, statistics, context)) if smaller else {}


def _run(executor: Executor, tasks: Iterable[FactorTask]) -> dict[str, Factorization]:
    """Run one block's tasks in parallel, and return their results by weight name."""
    return {name: factors for found in executor.map(tasks) for name, factors in found.items()}


def install(block: Block, found: Mapping[str, Factorization]) -> None:
    """Replace a block's dense linears by factored ones."""
    for name, factors in found.items():
        linear = block.linears[name]
        assert isinstance(linear, nn.Linear)
        tensors = {suffix: tensor.to(linear.weight.device) for suffix, tensor in factors.tensors.items()}
        block.replace(name, factored_linear(factors.form, tensors, tensors.get("bias", linear.bias)))
