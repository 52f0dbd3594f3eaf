"""One block's matrices: factorized, quantized, put in their places."""

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
    """Factorize some of a block's matrices and then, where that is asked for, quantize them and its dense ones.

    Args:
        method: Of compression.
        plans: Of linears.
        statistics: Of their inputs by name; None takes those of the evidence.
        context: The conversion.
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
    """Factorize some of a block's matrices; the dense ones are left out.

    Args:
        method: Of compression.
        plans: Of linears.
        statistics: Of their inputs by name.
        context: The conversion.
    """
    smaller = [plan for plan in plans if plan.is_compressed]
    return _run(context.executor, method.tasks(smaller, statistics, context)) if smaller else {}


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
