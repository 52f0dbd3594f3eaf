"""Show and estimate what a conversion would do, without running it."""

from __future__ import annotations

import time
from pathlib import Path

from curconvert.base.plan import Plan
from curconvert.estimate.rates import measure_machine
from curconvert.estimate.total import Estimate, estimate
from curconvert.jobs.prepare import first_plan
from curconvert.jobs.source import open_source
from curconvert.methods.core.options import ConvertOptions
from curconvert.options.execution import ExecutionOptions
from curconvert.options.source import SourceOptions

_LOCAL = ExecutionOptions()


def plan(source: SourceOptions, options: ConvertOptions) -> Plan:
    """Return what `convert` would do. Reads headers only.

    Args:
        source: The checkpoint.
        options: Method, size, calibration and dtype.

    Returns:
        Form and size of each matrix.

    Raises:
        CurConvertError: `convert` would raise the same error before it starts.
    """
    return first_plan(open_source(source), options)


def predict(
    source: SourceOptions, options: ConvertOptions, folder: Path, execution: ExecutionOptions = _LOCAL
) -> Estimate:
    """Estimate the time, memory and disk of `convert` on this machine. Measures its speed for a second or two.

    Args:
        source: The checkpoint.
        options: Method, size, calibration and dtype.
        folder: Existing folder on the disk that the output goes to.
        execution: Where `convert` would factorize.

    Raises:
        CurConvertError: `convert` would raise the same error before it starts.
    """
    start = time.perf_counter()
    checkpoint = open_source(source)
    opening = time.perf_counter() - start
    planned = first_plan(checkpoint, options)
    length = options.calibration.tokens_per_sequence
    machine = measure_machine(checkpoint, length, folder, execution.tasks_at_once)
    return estimate(checkpoint, planned, options, machine, opening)
