"""The main job: checkpoint in, verified artifact out."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from curconvert.allocation.plans import targets_of
from curconvert.artifact.folder import atomic_folder, check_output, publish
from curconvert.artifact.manifest import build_manifest, seal
from curconvert.artifact.model_files import tensor_specs, write_model_files
from curconvert.artifact.safetensors_writer import SafetensorsWriter
from curconvert.artifact.space import check_space, needed_bytes, states_bytes
from curconvert.artifact.workspace import workspace, workspace_of
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.types import Checkpoint
from curconvert.errors import InputError
from curconvert.estimate import Estimate, estimate, keeping_within
from curconvert.execution.executor import ExecutionOptions, executing
from curconvert.fingerprint import fingerprint
from curconvert.options import DTYPES, ConvertOptions, SourceOptions, arithmetic_of, check_choice
from curconvert.original_pass import silent
from curconvert.planning import Plan
from curconvert.production import (
    bytes_per_number,
    decide,
    deployed_dtype,
    first_plan,
    inputs,
    measure,
    prepare,
    produce,
    sampled,
    torch_dtype,
)
from curconvert.quantization.options import Quantization
from curconvert.quantization.tensors import quantised_tensors, quantization_json, write_quantised
from curconvert.quantization.widths import RoundingCost
from curconvert.rates import measure_machine
from curconvert.report.card import write_reports
from curconvert.widths import check_widths, exported_costs, with_widths
from curconvert_runtime.fidelity import Progress
from curconvert_runtime.machine import peak_memory
from curconvert_runtime.report import VerificationReport
from curconvert_runtime.verification import VerifyOptions

_LOCAL = ExecutionOptions()


@dataclass(frozen=True)
class Conversion:
    """A published artifact.

    Attributes:
        path: The folder.
        plan: What was compressed; None for an export.
        notices: What the user should know, one sentence each.
        report: The verification; None if it was not asked for.
        peak_memory_bytes: Most resident memory of this process before the verification; None where the system
            does not tell.
    """

    path: Path
    plan: Plan | None
    notices: tuple[str, ...]
    report: VerificationReport | None
    peak_memory_bytes: int | None


def plan(source: SourceOptions, options: ConvertOptions) -> Plan:
    """Show what `convert` would do, reading headers only.

    Raises:
        CurConvertError: Whatever `convert` would refuse before it starts.
    """
    return first_plan(open_source(source), options)


def predict(
    source: SourceOptions, options: ConvertOptions, folder: Path, execution: ExecutionOptions = _LOCAL
) -> Estimate:
    """Estimate what `convert` takes on this machine, whose speed is measured for a second or two.

    Args:
        source: The checkpoint.
        options: What would be done.
        folder: On the disk that would be written to.
        execution: Where matrices would be factorized.

    Raises:
        CurConvertError: As `plan`.
    """
    start = time.perf_counter()
    checkpoint = open_source(source)
    opening = time.perf_counter() - start
    planned, itemsize = first_plan(checkpoint, options), bytes_per_number(checkpoint, options)
    length = options.calibration.tokens_per_sequence
    machine = measure_machine(checkpoint, length, folder, execution.tasks_at_once)
    return estimate(checkpoint, planned, options, itemsize, machine, opening)


def convert(
    source: SourceOptions,
    out: Path,
    options: ConvertOptions,
    *,
    overwrite: bool = False,
    resume: bool = True,
    verification: VerifyOptions | None = None,
    execution: ExecutionOptions = _LOCAL,
    progress: Progress = silent,
) -> Conversion:
    """Compress a checkpoint into a verified artifact.

    A run that is interrupted leaves a journal beside the output, in `.NAME.curconvert`: the same call goes on from it.

    Args:
        source: The checkpoint.
        out: The folder to publish; it appears complete, or not at all.
        options: What to do.
        overwrite: Replace an existing artifact.
        resume: Go on from an interrupted run's journal where there is one; otherwise it is dropped.
        verification: Gates that the artifact must pass before it is published; None leaves verification out.
        execution: Where matrices are factorized; it changes no byte, and an interrupted run may go on with another.
        progress: Called as work goes on, after each step that is recorded: what it raises loses nothing of the work.

    Raises:
        CurConvertError: Its subclass says whose fault it is; `out` is then untouched.
    """
    execution.check_installed()
    checkpoint = open_source(source)
    check_output(out, overwrite, inputs(checkpoint, options))
    first = first_plan(checkpoint, options)  # refuses what cannot work before any tensor is read
    given = prepare(checkpoint, options)
    targets = targets_of(checkpoint, options)
    keeping = keeping_within(checkpoint, first, options, execution, workspace_of(out))
    needed = needed_bytes(checkpoint, first, options, bytes_per_number(checkpoint, options), targets)
    check_space(out, needed + (states_bytes(checkpoint, options) if keeping is not list else 0))
    identity = fingerprint(checkpoint, given.companions, given.tokens, options)
    with workspace(out, identity, resume=resume) as space, executing(execution) as executor:
        prepared = replace(sampled(given, options, progress, space.journal), keeping=keeping)
        measured = measure(prepared, [options], space.evidence, progress, space.journal)
        decided = decide(prepared, measured, options, executor, progress, space.journal)
        report, peak = produce(
            space.artifact, prepared, measured, decided, options, executor, verification, progress, space.journal
        )  # fmt: skip
        publish(space.artifact, out, overwrite)
    return Conversion(out, decided, prepared.tokens.notices, report, peak)


def export(
    source: SourceOptions,
    out: Path,
    *,
    dtype: str | None = None,
    target: str = "cpu",
    quantization: Quantization | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Conversion:
    """Write the same graphs and files for an uncompressed checkpoint: the baseline of every comparison.

    Args:
        source: The checkpoint.
        out: The folder to publish.
        dtype: Deployed dtype; None keeps the checkpoint's, or is float16 for `cuda`.
        target: `cpu` or `cuda`, see `ConvertOptions`.
        quantization: Rounds matrices, to the nearest: no text is read here. `convert` with the method `dense` rounds
            by the inputs on a calibration text, and verifies.
        overwrite: Replace an existing artifact.
        progress: Called after each tensor.

    Raises:
        CurConvertError: As for `convert`.
    """
    if quantization is not None and quantization.uses_statistics:
        raise InputError("--rounding gptq: export reads no calibration text; use convert --method dense")
    if dtype is not None:
        check_choice("--dtype", dtype, DTYPES)
    arithmetic = arithmetic_of(target, dtype, quantization)
    checkpoint = open_source(source)
    check_output(out, overwrite, (checkpoint.path, *checkpoint.files))
    dtype = deployed_dtype(checkpoint, dtype, arithmetic)
    companions = checkpoint.companions()
    if quantization is not None and quantization.mixed:
        check_widths(quantization, checkpoint, None)
    with atomic_folder(out, overwrite) as work:
        costs: list[RoundingCost] = []
        if quantization is not None and quantization.mixed:
            costs = exported_costs(checkpoint, quantization, progress)
            quantization = with_widths(quantization, checkpoint, None, costs)
        quantised = quantised_tensors(checkpoint, None, quantization) if quantization else {}
        errors: dict[str, float] = {}
        with SafetensorsWriter(work, tensor_specs(checkpoint, None, torch_dtype(dtype), quantization)) as writer:
            for done, name in enumerate(checkpoint.tensors, 1):
                if quantization and name in quantised:
                    errors[name] = write_quantised(name, checkpoint.read(name), quantization, writer)
                else:
                    writer.copy(name, checkpoint.read(name), checkpoint.tensors[name])
                progress("export", done, len(checkpoint.tensors))
            writer.finish()
        write_model_files(work, checkpoint, companions, dtype, writer.tensors, (), quantised, arithmetic)
        described = quantization_json(quantization, quantised, errors, costs) if quantization else None
        manifest = build_manifest(checkpoint, dtype, quantization=described, arithmetic=arithmetic)
        write_reports(work, manifest)
        seal(work, manifest)
    return Conversion(out, None, (), None, peak_memory())


def open_source(source: SourceOptions) -> Checkpoint:
    """Open a checkpoint.

    Raises:
        CurConvertError: It cannot be read, or is of a kind that is not supported.
    """
    return open_checkpoint(source.model, config=source.config, config_set=source.config_set, revision=source.revision)
