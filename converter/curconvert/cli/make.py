"""Defines the commands that need the converter's packages: convert, sweep, plan, export, heal, resize."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import click

from curconvert.cli import render
from curconvert.cli.base import (
    MODEL_SOURCES,
    common,
    output_option,
    overwrite_option,
    require_converter,
    resumable,
    resume_option,
)
from curconvert.cli.options import (
    FilePath,
    base_option,
    calibration_options,
    execution_options,
    heal_options,
    method_options,
    numeric_options,
    quantization_options,
    source_options,
    thresholds,
    to_calibration,
    to_execution,
    to_healing,
    to_options,
    to_quantization,
    to_source,
)
from curconvert.cli.streams import echo


@click.command()
@source_options
@output_option
@method_options
@thresholds
@execution_options
@overwrite_option
@click.option("--no-verify", is_flag=True, help="Publish without verification.")
@resume_option
@common
def convert(
    out: Path, overwrite: bool, no_verify: bool, resume: bool, as_json: bool, quiet: bool, max_kl: float | None,
    min_top1: float | None, max_ppl_ratio: float | None, max_parity: float, executor: str, workers: int | None,
    memory_limit: int | None, **method: Any,
) -> None:  # fmt: skip
    """Compress MODEL into a verified artifact.

    MODEL is a .safetensors or .gguf file, a Hugging Face folder, or a hub id.
    """
    require_converter()
    source, options = to_source(method), to_options(method, max_kl)  # rejects wrong options before torch is imported
    from curconvert.jobs.convert import convert as run
    from curconvert_runtime.checks.verification import VerifyOptions

    gates = None if no_verify else VerifyOptions(max_kl, min_top1, max_ppl_ratio, max_parity)
    with resumable(out, quiet) as progress:
        result = run(
            source, out, options,
            overwrite=overwrite, resume=resume, verification=gates,
            execution=to_execution(executor, workers, memory_limit), progress=progress,
        )  # fmt: skip
    if as_json:
        echo(json.dumps(render.conversion_json(result)))
    elif not quiet:
        render.conversion(result)


def _shares(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in value.split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(f"{value!r}: expected shares such as 0.9,0.8") from None


def _names(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


@click.command()
@source_options
@click.option("--output", "-o", "out", required=True, type=FilePath(), help="Folder to create.")
@click.option(
    "--keep",
    default="0.95,0.9,0.8,0.7",
    show_default=True,
    callback=_shares,
    help="Shares of all parameters to keep, embedding included.",
)
@click.option(
    "--methods",
    default="auto",
    show_default=True,
    callback=_names,
    help="Methods of `convert`. Those that take a density get the one that gives the same size.",
)
@click.option(
    "--text", type=FilePath(), help="UTF-8 text to measure on. KL is then exact. [held-out calibration sequences]"
)
@click.option("--window", type=int, default=512, show_default=True, help="Tokens per window of --text.")
@click.option("--max-tokens", type=int, default=16384, show_default=True, help="Maximum number of tokens of --text.")
@click.option("--keep-artifacts", is_flag=True, help="Keep each artifact, in the folder METHOD-KEEP of the output.")
@calibration_options
@numeric_options
@execution_options
@click.option("--overwrite", is_flag=True, help="Replace an existing sweep.")
@common
def sweep(
    out: Path, overwrite: bool, keep: tuple[float, ...], methods: tuple[str, ...], text: Path | None, window: int,
    max_tokens: int, keep_artifacts: bool, executor: str, workers: int | None, memory_limit: int | None, as_json: bool,
    quiet: bool, **values: Any,
) -> None:  # fmt: skip
    """Compress MODEL to several sizes and compare them.

    Calibrates once. Writes a table and a plot of quality, bytes and decode speed.
    """
    require_converter("matplotlib")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # hides messages about its font cache
    from curconvert.jobs.sweep.options import SweepOptions
    from curconvert.jobs.sweep.run import sweep as run

    source = to_source(values)
    settings = {"calibration": to_calibration(values), **{k: v for k, v in values.items() if v is not None}}
    options = SweepOptions(keep, methods, text, window, max_tokens, keep_artifacts, settings)
    with render.progress(quiet) as progress:
        result = run(
            source, out, options,
            overwrite=overwrite, execution=to_execution(executor, workers, memory_limit), progress=progress,
        )  # fmt: skip
    if as_json:
        echo(json.dumps({"path": str(result.path), **result.to_json()}))
    elif not quiet:
        render.sweep(result)
    result.raise_for_failures()


@click.command()
@source_options
@click.option(
    "--output",
    "-o",
    "out",
    type=FilePath(),
    default=".",
    help="Existing folder on the disk to measure. [the current folder]",
)
@method_options
@common
def plan(
    out: Path, as_json: bool, quiet: bool, **method: Any,
) -> None:  # fmt: skip
    """Show what `convert` would do to MODEL, and estimate time, memory and disk.

    Lists every matrix and the totals. Times one matrix, and measures this machine for a second or two.
    """
    require_converter()
    source, options = to_source(method), to_options(method)
    from curconvert.jobs.plan import plan as run
    from curconvert.jobs.plan import predict

    result = run(source, options)
    expected = predict(source, options, out)
    if as_json:
        echo(json.dumps(render.plan_json(result, expected)))
    elif not quiet:
        render.plan(result, expected)


@click.command()
@source_options
@output_option
@overwrite_option
@click.option("--dtype", help="Stored dtype: float32, float16 or bfloat16. [the checkpoint's; --target cuda: float16]")
@click.option(
    "--target",
    default="cpu",
    show_default=True,
    help="Where the artifact will run: cpu, or cuda (float16 weights and products).",
)
@quantization_options
@common
def export(
    out: Path, overwrite: bool, dtype: str | None, target: str, as_json: bool, quiet: bool, **values: Any,
) -> None:  # fmt: skip
    """Write the same files and graphs for MODEL without compression, as a baseline.

    --quantize and --bits-per-weight use round to nearest here. To quantize with a calibration text, and to verify the
    result, use `convert --method dense`.
    """
    require_converter()
    from curconvert.jobs.export import export as run

    source = to_source(values)
    given = values["quantize"] is not None or values["bits_per_weight"] is not None
    quantization = to_quantization(values | {"rounding": "nearest" if given else None})
    with render.progress(quiet) as progress:
        result = run(
            source, out,
            dtype=dtype, target=target, quantization=quantization, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    if as_json:
        echo(json.dumps(render.conversion_json(result)))
    elif not quiet:
        render.conversion(result)


@click.command()
@click.argument("artifact", type=FilePath())
@click.option("--against", help=f"The original: {MODEL_SOURCES}. --objective ce needs it only with --hidden or --kl.")
@base_option
@output_option
@heal_options
@thresholds
@overwrite_option
@click.option("--no-verify", is_flag=True, help="Publish without verification.")
@resume_option
@common
def heal(
    artifact: Path, against: str | None, base: str | None, out: Path, overwrite: bool, no_verify: bool, resume: bool,
    as_json: bool, quiet: bool, max_kl: float | None, min_top1: float | None, max_ppl_ratio: float | None,
    max_parity: float, **values: Any,
) -> None:  # fmt: skip
    """Train the linking factors of ARTIFACT to match the original, or to learn a task.

    The size and the graphs do not change.
    """
    require_converter()
    from curconvert.jobs.heal import heal as run
    from curconvert.options.source import SourceOptions, check_base
    from curconvert_runtime.checks.verification import VerifyOptions

    check_base(base, against)
    options = to_healing(values)
    gates = None if no_verify else VerifyOptions(max_kl, min_top1, max_ppl_ratio, max_parity)
    with resumable(out, quiet) as progress:
        result = run(
            artifact, None if against is None else SourceOptions(against, base=base), out, options,
            overwrite=overwrite, resume=resume, verification=gates, progress=progress,
        )  # fmt: skip
    if as_json:
        echo(json.dumps(render.healing_json(result)))
    elif not quiet:
        render.healing(result)


@click.command()
@click.argument("artifact", type=FilePath())
@output_option
@click.option("--keep", type=float, help="Share of the original's parameters to keep, embedding included.")
@click.option("--target-params", "target_parameters", type=int, help="Maximum parameters of the whole model.")
@click.option("--workers", type=int, help="Matrices to cut at the same time. [the available cores]")
@thresholds
@overwrite_option
@click.option("--no-verify", is_flag=True, help="Publish without verification.")
@common
def resize(
    artifact: Path, out: Path, keep: float | None, target_parameters: int | None, workers: int | None, overwrite: bool,
    no_verify: bool, as_json: bool, quiet: bool, max_kl: float | None, min_top1: float | None,
    max_ppl_ratio: float | None, max_parity: float,
) -> None:  # fmt: skip
    """Cut ARTIFACT to a smaller size, without the checkpoint, calibration or training.

    ARTIFACT comes from `convert --scored`.
    """
    require_converter()
    from curconvert.jobs.resize import resize as run
    from curconvert.options.execution import ExecutionOptions
    from curconvert.options.resize import ResizeOptions
    from curconvert_runtime.checks.verification import VerifyOptions

    options, execution = ResizeOptions(keep, target_parameters), ExecutionOptions(workers=workers)
    gates = None if no_verify else VerifyOptions(max_kl, min_top1, max_ppl_ratio, max_parity)
    with render.progress(quiet) as progress:
        result = run(
            artifact, out, options, overwrite=overwrite, verification=gates, execution=execution, progress=progress
        )
    if as_json:
        echo(json.dumps(render.resizing_json(result)))
    elif not quiet:
        render.resizing(result)
