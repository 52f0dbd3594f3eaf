"""Estimates time, memory and disk space of a conversion on this machine, from shapes and measured rates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from curconvert.base.errors import InputError
from curconvert.base.plan import Plan
from curconvert.calibration.batches import IN_MEMORY, StateStore
from curconvert.checkpoint.types import Checkpoint
from curconvert.estimate import memory as estimate_memory
from curconvert.estimate import time as estimate_time
from curconvert.estimate.disk import needed_bytes
from curconvert.estimate.rates import Machine
from curconvert.estimate.workload import Workload
from curconvert.methods.core.options import ConvertOptions
from curconvert.methods.core.planning import bytes_per_number
from curconvert.options.execution import ExecutionOptions


@dataclass(frozen=True)
class Estimate:
    """Time, memory and disk of a conversion, as `predict` estimates them.

    Attributes:
        seconds: Wall time of the process before verification.
        peak_memory_bytes: Peak resident memory before verification.
        verification_seconds: Wall time of verification.
        verification_memory_bytes: Peak resident memory during verification.
        temporary_bytes: Disk space during the run, output included.
        output_bytes: Size of the weights of the artifact.
    """

    seconds: float
    peak_memory_bytes: int
    verification_seconds: float
    verification_memory_bytes: int
    temporary_bytes: int
    output_bytes: int


def store_within(
    checkpoint: Checkpoint, plan: Plan, options: ConvertOptions, execution: ExecutionOptions, folder: Path
) -> StateStore:
    """Decide where hidden states are kept: in memory, or on disk if they would exceed the memory limit.

    Args:
        checkpoint: The opened model.
        plan: The plan from shapes alone.
        options: Method, numerics and calibration.
        execution: The limit, and the number of matrices factorized at the same time.
        folder: A folder on the disk that would take the states.

    Raises:
        InputError: The conversion exceeds the limit even with hidden states on disk.
    """
    limit, work = execution.memory_limit, Workload(checkpoint, plan, options)
    if limit is None or estimate_memory.peak(work, execution.tasks_at_once) <= limit:
        return IN_MEMORY
    needed = estimate_memory.peak(work, execution.tasks_at_once, spilled=True)
    if needed > limit:
        least = estimate_memory.peak(work, 1, spilled=True)
        fewer = "--workers 1 or " if least <= limit else ""
        raise InputError(
            f"--memory-limit: {limit / 1e9:.2f} GB, but about {needed / 1e9:.2f} GB are needed with all hidden states "
            f"on disk; raise the limit, or use {fewer}less calibration text"
        )
    return StateStore(folder)


def estimate(
    checkpoint: Checkpoint,
    plan: Plan,
    options: ConvertOptions,
    machine: Machine,
    opening: float = 0.0,
) -> Estimate:
    """Return the estimate of a conversion.

    Args:
        checkpoint: The opened model.
        plan: The plan from shapes alone.
        options: Method, numerics and calibration.
        machine: Rates of the machine.
        opening: Seconds that opening the checkpoint took.
    """
    work, output = (
        Workload(checkpoint, plan, options),
        int(plan.parameters_after * bytes_per_number(checkpoint, options)),
    )
    source = sum(file.stat().st_size for file in checkpoint.files)
    return Estimate(
        seconds=estimate_time.seconds(work, machine, opening, source, output),
        peak_memory_bytes=int(estimate_memory.peak(work, machine.workers)),
        verification_seconds=estimate_time.verification(work, machine, output),
        verification_memory_bytes=int(estimate_memory.verification(work, plan.parameters_after)),
        temporary_bytes=needed_bytes(checkpoint, plan, options),
        output_bytes=output,
    )
