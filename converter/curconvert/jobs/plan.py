"""Plans a conversion and estimates its time, memory and disk space, without reading a weight."""

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
    """Show what `convert` would do, reading headers only.

    Raises:
        CurConvertError: Whatever `convert` would refuse before it starts.
    """
    return first_plan(open_source(source), options)


def predict(
    source: SourceOptions, options: ConvertOptions, folder: Path, execution: ExecutionOptions = _LOCAL
) -> Estimate:
    """Estimate time, memory and disk space of `convert` on this machine. Measuring its speed takes a second or two.

    Args:
        source: The checkpoint.
        options: Options of the conversion.
        folder: A folder on the disk that the conversion would write to.
        execution: Where matrices would be factorized.

    Raises:
        CurConvertError: As `plan`.
    """
    start = time.perf_counter()
    checkpoint = open_source(source)
    opening = time.perf_counter() - start
    planned = first_plan(checkpoint, options)
    length = options.calibration.tokens_per_sequence
    machine = measure_machine(checkpoint, length, folder, execution.tasks_at_once)
    return estimate(checkpoint, planned, options, machine, opening)
