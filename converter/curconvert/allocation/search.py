"""Searches for the smallest plan within a limit on the divergence (`--max-kl`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from curconvert.allocation.curves import Curve
from curconvert.allocation.plans import allocated, predicted_cost
from curconvert.base.errors import InputError
from curconvert.base.plan import Plan

_TRIALS = 5  # most compressions that a search measures
_NEAR = 0.95  # a search ends at this share of the allowed divergence


def smallest(
    plan: Plan,
    curves: Sequence[Curve],
    limit: float,
    shared: Callable[[Plan], Plan],
    measure: Callable[[Plan], float],
) -> Plan:
    """Search for the smallest plan whose measured divergence is within a limit.

    The measured divergence is nearly proportional to the predicted one. So each trial scales the prediction by the
    last ratio of limit to measurement, and stays between the predictions already tried. The ratio also covers the
    savings from sharing.

    Args:
        plan: Any plan of the same model.
        curves: Curves of every module that may be compressed.
        limit: Limit of the divergence, nats per token.
        shared: Makes neighboring layers of a plan share a basis, or returns the plan unchanged.
        measure: Returns the divergence of a plan.

    Raises:
        InputError: No smaller size is within the limit.
    """
    best: Plan | None = None
    low, high = 0.0, math.inf  # largest prediction measured within the limit, smallest one measured above it
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
        raise InputError(f"--max-kl {limit:g}: every smaller size exceeds it on held-out text; raise it or give a size")
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
