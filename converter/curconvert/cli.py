"""The command line: arguments to options, one call, rendering and the exit code."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from curconvert import render
from curconvert.cli_options import (
    FilePath,
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
from curconvert.errors import BackendError, CurConvertError, InputError
from curconvert.interruption import Interrupted, stoppable
from curconvert_runtime import __version__

if TYPE_CHECKING:
    from curconvert_runtime.fidelity import Progress

_MODEL_SOURCES = "a .safetensors or .gguf file, a Hugging Face folder, or a hub id"
_HEAVY = (
    "torch",
    "transformers",
    "safetensors",
    "scipy",
    "onnx",
    "onnx_ir",
    "mobius",
    "gguf",
    "huggingface_hub",
    "threadpoolctl",
)


class _DefaultGroup(click.Group):
    """A bare `curconvert MODEL …` means `curconvert convert MODEL …`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("--help", "-h", "--version"):
            close = difflib.get_close_matches(args[0], self.commands, n=1, cutoff=0.7)
            if close and not Path(args[0]).exists():
                raise click.UsageError(f"no command or file {args[0]!r}; did you mean {close[0]!r}?", ctx)
            args = ["convert", *args]
        return super().parse_args(ctx, args)


def _common(function: Callable[..., None]) -> Callable[..., None]:
    """Add --json, --quiet and --debug, and turn errors into one line and an exit code."""

    @click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
    @click.option("--quiet", "-q", is_flag=True, help="No progress, no summary; errors only.")
    @click.option("--debug", is_flag=True, help="Show log messages, and tracebacks of errors.")
    @functools.wraps(function)
    def wrapper(*args: Any, debug: bool, **kwargs: Any) -> None:
        logging.basicConfig(
            level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
        )
        # SIGTERM unwinds like Ctrl-C does, so that temporary folders go.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            function(*args, **kwargs)
        except CurConvertError as error:
            _fail(str(error), error.exit_code, debug)
        except KeyboardInterrupt:
            _fail("interrupted; nothing was written", 130, debug)
        except OSError as error:
            _fail(f"{error.filename or 'operating system'}: {error.strerror or error}", InputError.exit_code, debug)

    return wrapper


def _fail(message: str, code: int, debug: bool) -> None:
    if debug:
        logging.getLogger(__name__).exception("traceback")
    click.echo(f"error: {render.printable(' '.join(message.split()))}", err=True)
    sys.exit(code)


def _require_converter(*more: str) -> None:
    missing = [name for name in (*_HEAVY, *more) if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendError(f"{', '.join(missing)} not installed; run: pip install 'curconvert[convert,cpu]'")


@click.group(cls=_DefaultGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="curconvert")
def main() -> None:
    """Compress transformer checkpoints with CUR factors, export ONNX graphs that serve them, verify the result.

    `curconvert MODEL -o OUT` is short for `curconvert convert MODEL -o OUT`.
    """


_out = click.option("--output", "-o", "out", required=True, type=FilePath(), help="Folder to create.")
_overwrite = click.option("--overwrite", is_flag=True, help="Replace an existing artifact.")
_resume = click.option(
    "--resume/--no-resume",
    default=True,
    show_default=True,
    help="Go on from where an interrupted run of the same command stopped, or drop its work.",
)


@contextmanager
def _resumable(out: Path, quiet: bool) -> Iterator[Progress]:
    """Show progress; turn a signal into the message that says whether the work can be gone on with."""
    from curconvert.artifact.workspace import RESUME, workspace_of

    try:
        with render.progress(quiet) as bars, stoppable(bars, announce=not quiet) as progress:
            yield progress
    except Interrupted as stop:
        kept = workspace_of(out).exists()
        message = f"interrupted; {RESUME}" if kept else "interrupted; nothing was written"
        _fail(message, stop.exit_code, debug=False)


@main.command()
@source_options
@_out
@method_options
@thresholds
@execution_options
@_overwrite
@click.option("--no-verify", is_flag=True, help="Publish without running the verification.")
@_resume
@_common
def convert(
    model: str, config: Path | None, config_set: dict[str, str], revision: str | None, out: Path, overwrite: bool,
    no_verify: bool, resume: bool, as_json: bool, quiet: bool, max_kl: float | None, min_top1: float | None,
    max_ppl_ratio: float | None, max_parity: float, executor: str, workers: int | None, **method: Any,
) -> None:  # fmt: skip
    """Compress MODEL into a verified artifact: a .safetensors or .gguf file, a Hugging Face folder, or a hub id."""
    _require_converter()
    from curconvert.pipeline import convert as run
    from curconvert_runtime.verification import VerifyOptions

    options = to_options(method, max_kl)
    gates = None if no_verify else VerifyOptions(max_kl, min_top1, max_ppl_ratio, max_parity)
    with _resumable(out, quiet) as progress:
        result = run(
            to_source(model, config, config_set, revision), out, options,
            overwrite=overwrite, resume=resume, verification=gates,
            execution=to_execution(executor, workers), progress=progress,
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps(render.conversion_json(result)))
    elif not quiet:
        render.conversion(result)


def _shares(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in value.split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(f"{value!r}: expected shares such as 0.9,0.8") from None


def _names(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


@main.command()
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
    help="Methods of convert; others than auto get the density of all linears that gives the same size.",
)
@click.option("--text", type=FilePath(), help="UTF-8 text to measure on; KL is then exact.")
@click.option("--window", type=int, default=512, show_default=True, help="Tokens per window of --text.")
@click.option("--max-tokens", type=int, default=16384, show_default=True, help="Tokens of --text at most.")
@click.option("--keep-artifacts", is_flag=True, help="Keep each artifact, in METHOD-KEEP beside the table.")
@calibration_options
@numeric_options
@execution_options
@click.option("--overwrite", is_flag=True, help="Replace an existing sweep.")
@_common
def sweep(
    model: str, config: Path | None, config_set: dict[str, str], revision: str | None, out: Path, overwrite: bool,
    keep: tuple[float, ...], methods: tuple[str, ...], text: Path | None, window: int, max_tokens: int,
    keep_artifacts: bool, executor: str, workers: int | None, as_json: bool, quiet: bool, **values: Any,
) -> None:  # fmt: skip
    """Measure MODEL at many sizes from one calibration: a table and a plot of quality, bytes and decode speed."""
    _require_converter("matplotlib")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it speaks of its font cache, in its own time
    from curconvert.sweep.options import SweepOptions
    from curconvert.sweep.run import sweep as run

    settings = {"calibration": to_calibration(values), **{k: v for k, v in values.items() if v is not None}}
    options = SweepOptions(keep, methods, text, window, max_tokens, keep_artifacts, settings)
    with render.progress(quiet) as progress:
        result = run(
            to_source(model, config, config_set, revision), out, options,
            overwrite=overwrite, execution=to_execution(executor, workers), progress=progress,
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps({"path": str(result.path), **result.to_json()}))
    elif not quiet:
        render.sweep(result)
    result.raise_for_failures()


def _counts(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in value.split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(f"{value!r}: expected whole numbers such as 128,512") from None


@main.command()
@click.argument("artifact", type=FilePath())
@click.option(
    "--against", help=f"What to take turns with: another artifact, or (with the convert extra) {_MODEL_SOURCES}."
)
@click.option(
    "--prompt-tokens", default="128", show_default=True, callback=_counts, help="Lengths of prompts, such as 128,512."
)
@click.option("--generated-tokens", type=int, default=64, show_default=True, help="Tokens timed after the first.")
@click.option(
    "--batch", "batches", default="1", show_default=True, callback=_counts, help="Numbers of rows, such as 1,8."
)
@click.option("--rounds", type=int, default=5, show_default=True, help="Timed rounds; one more goes before them.")
@click.option("--threads", type=int, help="Threads of onnxruntime and of the memory's reader.")
@click.option("--graph", default="auto", show_default=True, help="auto, portable or fused.")
@click.option("--provider", default="cpu", show_default=True, help="cpu or cuda; no silent fallback.")
@_common
def bench(artifact: Path, against: str | None, as_json: bool, quiet: bool, **values: Any) -> None:
    """Measure how fast ARTIFACT serves, its memory and its start, alone or in turn with another model."""
    from curconvert.bench import BenchOptions
    from curconvert.bench import bench as run

    options = BenchOptions(**values)
    with render.progress(quiet) as progress:
        result = run(artifact, options, against=against, progress=progress)
    if as_json:
        click.echo(json.dumps(result.to_json()))
    elif not quiet:
        render.bench(result)


@main.command()
@source_options
@click.option(
    "--output", "-o", "out", type=FilePath(), default=".", help="Existing folder whose disk is measured. [this folder]"
)
@method_options
@_common
def plan(
    model: str, config: Path | None, config_set: dict[str, str], revision: str | None, out: Path, as_json: bool,
    quiet: bool, **method: Any,
) -> None:  # fmt: skip
    """Show what a conversion of MODEL would do: every matrix, totals, and an estimate of time, memory and disk.

    Reads no weights; measures this machine for a second.
    """
    _require_converter()
    from curconvert.pipeline import plan as run
    from curconvert.pipeline import predict

    source, options = to_source(model, config, config_set, revision), to_options(method)
    result = run(source, options)
    expected = predict(source, options, out)
    if as_json:
        click.echo(json.dumps(render.plan_json(result, expected)))
    elif not quiet:
        render.plan(result, expected)


@main.command()
@source_options
@_out
@_overwrite
@click.option("--dtype", help="float32, float16 or bfloat16; default: the checkpoint's.")
@quantization_options
@_common
def export(
    model: str, config: Path | None, config_set: dict[str, str], revision: str | None, out: Path, overwrite: bool,
    dtype: str | None, as_json: bool, quiet: bool, **values: Any,
) -> None:  # fmt: skip
    """Write the same graphs for the uncompressed MODEL: the baseline of every comparison.

    --quantize rounds to the nearest here; `convert --method dense` rounds by a calibration text, and verifies.
    """
    _require_converter()
    from curconvert.pipeline import export as run

    quantization = to_quantization(values | {"rounding": None if values["quantize"] is None else "nearest"})
    with render.progress(quiet) as progress:
        result = run(
            to_source(model, config, config_set, revision), out,
            dtype=dtype, quantization=quantization, overwrite=overwrite, progress=progress,
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps(render.conversion_json(result)))
    elif not quiet:
        render.conversion(result)


@main.command()
@click.argument("artifact", type=FilePath())
@click.option("--against", required=True, help=f"The original that it was made from: {_MODEL_SOURCES}.")
@_out
@heal_options
@thresholds
@_overwrite
@click.option("--no-verify", is_flag=True, help="Publish without running the verification.")
@_resume
@_common
def heal(
    artifact: Path, against: str, out: Path, overwrite: bool, no_verify: bool, resume: bool, as_json: bool, quiet: bool,
    max_kl: float | None, min_top1: float | None, max_ppl_ratio: float | None, max_parity: float, **values: Any,
) -> None:  # fmt: skip
    """Train the linking factors of ARTIFACT towards the original; size and graphs stay what they are."""
    _require_converter()
    from curconvert.healing.run import heal as run
    from curconvert.options import SourceOptions
    from curconvert_runtime.verification import VerifyOptions

    options = to_healing(values)
    gates = None if no_verify else VerifyOptions(max_kl, min_top1, max_ppl_ratio, max_parity)
    with _resumable(out, quiet) as progress:
        result = run(
            artifact, SourceOptions(against), out, options,
            overwrite=overwrite, resume=resume, verification=gates, progress=progress,
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps(render.healing_json(result)))
    elif not quiet:
        render.healing(result)


@main.command()
@click.argument("artifact", type=FilePath())
@thresholds
@click.option("--against", help=f"The original: an exported folder, or (with the convert extra) {_MODEL_SOURCES}.")
@click.option("--text", type=FilePath(), help="UTF-8 text to measure on; needs --against.")
@click.option("--window", type=int, default=512, show_default=True, help="Tokens per window of --text.")
@click.option("--max-tokens", type=int, default=16384, show_default=True, help="Tokens of --text at most.")
@click.option("--junit", type=FilePath(), help="Write the checks as JUnit XML to this file.")
@click.option("--torch/--no-torch", default=None, help="Compare with transformers too. [when it is installed]")
@click.option("--provider", default="cpu", show_default=True, help="cpu or cuda; no silent fallback.")
@click.option("--threads", type=int, help="Threads of onnxruntime.")
@_common
def verify(
    artifact: Path, against: str | None, junit: Path | None, torch: bool | None, as_json: bool, quiet: bool,
    **values: Any,
) -> None:  # fmt: skip
    """Check ARTIFACT: integrity, export parity, fidelity to the original. Exit code 3 when a check fails."""
    from curconvert.verification import verify_artifact
    from curconvert_runtime.verification import VerifyOptions

    if junit is not None and junit.resolve().is_relative_to(artifact.resolve()):
        raise InputError(f"--junit {junit}: lies in the artifact, whose files are sealed; write it elsewhere")
    with render.progress(quiet) as progress:
        report = verify_artifact(artifact, VerifyOptions(**values), against=against, torch=torch, progress=progress)
    if junit is not None:
        junit.write_text(report.to_junit(), encoding="utf-8")
    if as_json:
        click.echo(json.dumps(report.to_json()))
    elif not quiet:
        render.verification(report)
    report.raise_for_failures()


@main.command()
@click.argument("artifact", type=FilePath())
@_common
def inspect(artifact: Path, as_json: bool, quiet: bool) -> None:
    """Show what ARTIFACT holds, after checking that it is intact."""
    from curconvert_runtime import Artifact

    opened = Artifact.open(artifact)
    if as_json:
        click.echo(json.dumps(opened.manifest))
    elif not quiet:
        render.artifact(opened.manifest)


@main.command()
@click.argument("artifact", type=FilePath())
@click.option("--prompt", "-p", multiple=True, help="Text to continue; repeat for a batch; standard input without it.")
@click.option("--max-new-tokens", type=int, default=128, show_default=True)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=int, default=0, show_default=True, help="0 is no limit.")
@click.option("--top-p", type=float, default=1.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--stop", multiple=True, help="Text that ends the answer; may be repeated.")
@click.option("--chat", is_flag=True, help="Put the prompt into the model's chat template.")
@click.option("--graph", default="auto", show_default=True, help="auto, portable or fused.")
@click.option("--provider", default="cpu", show_default=True, help="cpu or cuda; no silent fallback.")
@click.option("--threads", type=int, help="Threads of onnxruntime.")
@_common
def generate(
    artifact: Path, prompt: tuple[str, ...], graph: str, provider: str, threads: int | None, as_json: bool,
    quiet: bool, **values: Any,
) -> None:  # fmt: skip
    """Continue a prompt with ARTIFACT, without torch."""
    from curconvert_runtime.generation import GenerationOptions, stream
    from curconvert_runtime.session import load

    options = GenerationOptions(**values)
    prompts = list(prompt) or [sys.stdin.read()]
    session = load(artifact, provider=provider, graph=graph, threads=threads)  # type: ignore[arg-type]  # load checks it
    alone = len(prompts) == 1 and not as_json
    completions = {}
    for piece in stream(session, prompts, options):
        if alone:
            click.echo(piece.text, nl=False)
        if piece.completion:
            completions[piece.row] = piece.completion
    if alone:
        click.echo()
    elif as_json:
        fields = ("text", "ids", "finish_reason")
        found = [{name: getattr(done, name) for name in fields} for _, done in sorted(completions.items())]
        click.echo(json.dumps(found))
    else:
        for _, done in sorted(completions.items()):
            click.echo(done.text)
