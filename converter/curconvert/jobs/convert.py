"""Converts a checkpoint into a verified artifact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from curconvert.artifact.fingerprint import fingerprint
from curconvert.artifact.folder import check_output, publish
from curconvert.artifact.workspace import workspace, workspace_of
from curconvert.base.progress import silent
from curconvert.estimate.disk import check_space, needed_bytes, states_bytes
from curconvert.estimate.total import store_within
from curconvert.execution.executor import executing
from curconvert.jobs.conversion import Conversion
from curconvert.jobs.measure import measure
from curconvert.jobs.prepare import first_plan, inputs, prepare, sampled
from curconvert.jobs.produce import produce
from curconvert.jobs.source import open_source
from curconvert.methods.core.options import ConvertOptions
from curconvert.options.execution import ExecutionOptions
from curconvert.options.source import SourceOptions
from curconvert_runtime.checks.fidelity import Progress
from curconvert_runtime.checks.verification import VerifyOptions

_LOCAL = ExecutionOptions()


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

    An interrupted run leaves its work in `.NAME.curconvert`, beside `out`. The same call resumes it.

    Args:
        source: The checkpoint.
        out: Folder to create. It appears when it is complete.
        options: Method, size, calibration and dtype.
        overwrite: Replace an existing artifact.
        resume: Resume an interrupted run of the same call. False discards its work.
        verification: Limits that the artifact must meet before it is published; None skips verification.
        execution: Where to factorize, and the memory limit. It does not change the result. You may change it for a
            resumed run.
        progress: Called with (stage, done, total) after each recorded step. An exception that it raises stops the run,
            and the run can be resumed.

    Returns:
        The published artifact and its report.

    Raises:
        CurConvertError: The subclass says what is wrong. `out` is then unchanged.
    """
    execution.check_installed()
    checkpoint = open_source(source)
    check_output(out, overwrite, inputs(checkpoint, options))
    first = first_plan(checkpoint, options)  # rejects impossible options before any tensor is read
    given = prepare(checkpoint, options)
    store = store_within(checkpoint, first, options, execution, workspace_of(out))
    states = states_bytes(checkpoint, options) if store.on_disk else 0
    needed = needed_bytes(checkpoint, first, options) + states
    check_space(out, needed)
    identity = fingerprint(checkpoint, given.companions, given.tokens, options.to_json())
    with workspace(out, identity, resume=resume, needed=needed) as space, executing(execution) as executor:
        prepared = replace(sampled(given, options, progress, space.journal), store=store)
        context = prepared.context(options, space.evidence, executor, progress, space.journal)
        measured = measure(context, [options])
        decided = options.method.decide(context, measured)
        report, peak = produce(
            space.artifact, context, prepared.companions, measured, decided, options, verification
        )  # fmt: skip
        publish(space.artifact, out, overwrite)
    notices = (*checkpoint.notices, *given.companions.notices, *prepared.tokens.notices)
    return Conversion(out, decided, notices, report, peak)
