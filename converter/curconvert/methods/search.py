"""From what each module is worth to a plan: spend the budget, or search for the least."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence

import torch

from curconvert.allocation.curves import Curve
from curconvert.allocation.plans import allocated, predicted_cost, target_parameters
from curconvert.allocation.sharing import with_sharing
from curconvert.base.errors import InputError
from curconvert.base.plan import Plan
from curconvert.calibration.evidence import Evidence
from curconvert.calibration.original import OriginalPass
from curconvert.calibration.text import CalibrationTokens
from curconvert.checkpoint.types import Checkpoint
from curconvert.execution.task import Executor
from curconvert.journal.store import Journal
from curconvert.methods.divergence import divergence
from curconvert.options.convert import ConvertOptions
from curconvert.options.quantization import stored_bytes
from curconvert.quantization.tensors import Tables
from curconvert_runtime.checks.fidelity import Progress

logger = logging.getLogger(__name__)
_TRIALS = 5  # compressions that a search may measure
_NEAR = 0.95  # share of the allowed divergence at which a search ends


def decide_plan(
    checkpoint: Checkpoint,
    plan: Plan,
    curves: Sequence[Curve],
    tokens: CalibrationTokens,
    original: OriginalPass,
    options: ConvertOptions,
    dtype: torch.dtype,
    evidence: Evidence,
    executor: Executor,
    progress: Progress,
    journal: Journal,
    tables: Tables,
) -> Plan:
    """Decide the size of every module.

    Args:
        checkpoint: The original.
        plan: What is known without measuring.
        curves: Of every module that may be compressed.
        tokens: Calibration and probe sequences.
        original: The original's answers.
        options: The budget.
        dtype: Deployed dtype.
        evidence: Statistics of the original.
        executor: Factorizes for a search.
        progress: Called after each block of a search.
        journal: Keeps each block of a search, and each trial's divergence.
        tables: Embedding and head where they are quantised.

    Raises:
        InputError: The budget cannot be had.
    """

    def shared(separate: Plan) -> Plan:
        return with_sharing(separate, curves, checkpoint, evidence, options, executor) if options.share else separate

    if options.max_kl is None:
        return shared(
            allocated(plan, curves, target_parameters(checkpoint, options, stored_bytes(dtype, options.quantization)))
        )

    trials = itertools.count(1)

    def measure(candidate: Plan) -> float:
        stage = f"search-{next(trials)}"
        found = divergence(
            checkpoint, candidate, tokens, original, options, dtype, evidence, executor, progress, journal, stage,
            tables,
        )  # fmt: skip
        logger.info("%d parameters: KL %.4f", candidate.parameters_after, found)
        return found

    return _smallest(plan, curves, options.max_kl, shared, measure)


def _smallest(
    plan: Plan,
    curves: Sequence[Curve],
    limit: float,
    shared: Callable[[Plan], Plan],
    measure: Callable[[Plan], float],
) -> Plan:
    """Search the smallest plan whose measured divergence stays within a limit.

    The measured divergence of a plan is nearly proportional to the predicted one, so each trial scales the prediction
    by what the last one missed, inside what was measured before. What sharing saves is among what it missed.
    """
    best: Plan | None = None
    low, high = 0.0, math.inf  # predictions that were measured within and beyond the limit
    wanted = limit
    for _ in range(_TRIALS):
        separate = _with_cost(plan, curves, wanted)
        candidate = shared(separate)
        predicted, found = predicted_cost(curves, separate), measure(candidate)
        if found <= limit:
            best, low = candidate, max(low, predicted)
            if found >= _NEAR * limit:
                break
        else:
            high = min(high, predicted)
        if predicted > 0 and found > 0:
            wanted = predicted * limit / found * (0.98 if found > limit else 1.0)
        if not low < wanted < high:
            wanted = math.sqrt(max(low, 1e-3 * limit) * high) if math.isfinite(high) else 2 * max(low, wanted)
    if best is None or best.parameters_after == best.parameters_before:
        raise InputError(f"--max-kl {limit:g}: no smaller size met it on the held-out text; allow more, or give a size")
    return best


def _with_cost(plan: Plan, curves: Sequence[Curve], wanted: float) -> Plan:
    """Return the smallest plan whose predicted cost is at most `wanted`, by bisection over the size."""
    dense = sum(float(curve.parameters[0]) for curve in curves)
    rest = plan.parameters_before - dense
    low, high = int(rest + sum(float(curve.parameters.min()) for curve in curves)) + 1, plan.parameters_before
    while high - low > plan.parameters_before // 4096:
        middle = (low + high) // 2
        met = predicted_cost(curves, allocated(plan, curves, middle)) <= wanted
        low, high = (low, middle) if met else (middle, high)
    return allocated(plan, curves, high)
