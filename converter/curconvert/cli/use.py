"""Defines the commands that use an artifact: bench, verify, inspect, generate. They need no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from curconvert.base.errors import InputError
from curconvert.cli import render
from curconvert.cli.base import MODEL_SOURCES, common
from curconvert.cli.options import FilePath, Typed, base_option, thresholds
from curconvert.cli.output_file import OutputFile, write_file
from curconvert.cli.streams import echo, lost, typed_input
from curconvert.cli.terminal import for_stdout


def _counts(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in value.split(",") if part.strip())
    except ValueError:
        raise click.BadParameter(f"{value!r}: expected whole numbers such as 128,512") from None


_graph_option = click.option(
    "--graph", default="auto", show_default=True, help="Graph to run: auto (fused if present), portable or fused."
)
_provider_option = click.option(
    "--provider",
    default="cpu",
    show_default=True,
    help="Execution provider: cpu or cuda. It never falls back silently.",
)


@click.command()
@click.argument("artifact", type=FilePath())
@click.option(
    "--against", help=f"Other model, measured alternately: an artifact, or (with the convert extra) {MODEL_SOURCES}."
)
@base_option
@click.option(
    "--prompt-tokens", default="128", show_default=True, callback=_counts, help="Prompt lengths, such as 128,512."
)
@click.option("--generated-tokens", type=int, default=64, show_default=True, help="Tokens to time after the first one.")
@click.option("--batch", "batches", default="1", show_default=True, callback=_counts, help="Batch sizes, such as 1,8.")
@click.option("--rounds", type=int, default=5, show_default=True, help="Timed rounds, after one round of warm-up.")
@click.option(
    "--threads",
    type=int,
    help="Threads of onnxruntime and of the bandwidth measurement. [onnxruntime's default; all CPUs]",
)
@_graph_option
@_provider_option
@common
def bench(artifact: Path, against: str | None, base: str | None, as_json: bool, quiet: bool, **values: Any) -> None:
    """Measure the speed, memory and start time of ARTIFACT, alone or alternating with another model."""
    from curconvert.jobs.bench.run import bench as run
    from curconvert.options.bench import BenchOptions

    options = BenchOptions(**values)
    with render.progress(quiet) as progress:
        result = run(artifact, options, against=against, base=base, progress=progress)
    if as_json:
        echo(json.dumps(result.to_json()))
    elif not quiet:
        render.bench(result)


@click.command()
@click.argument("artifact", type=FilePath())
@thresholds
@click.option("--against", help=f"The original: a folder from `export`, or (with the convert extra) {MODEL_SOURCES}.")
@base_option
@click.option("--text", type=FilePath(), help="UTF-8 text to measure fidelity on; needs --against.")
@click.option("--window", type=int, default=512, show_default=True, help="Tokens per window of --text.")
@click.option("--max-tokens", type=int, default=16384, show_default=True, help="Maximum number of tokens of --text.")
@click.option(
    "--begin/--no-begin",
    default=None,
    help="Start each window of --text with the begin token, if the tokenizer adds one. [as at the conversion]",
)
@click.option("--junit", type=OutputFile(), help="Write the checks as JUnit XML to this file.")
@click.option("--torch/--no-torch", default=None, help="Also compare with transformers. [if it is installed]")
@_provider_option
@click.option("--threads", type=int, help="Threads of onnxruntime. [onnxruntime's default]")
@common
def verify(
    artifact: Path, against: str | None, base: str | None, junit: Path | None, torch: bool | None, as_json: bool,
    quiet: bool, **values: Any,
) -> None:  # fmt: skip
    """Check ARTIFACT: integrity, export parity, and fidelity to the original.

    Exits with code 3 if a check fails.
    """
    from curconvert.cli.junit import to_junit
    from curconvert.jobs.verify import verify_artifact
    from curconvert_runtime.checks.verification import VerifyOptions

    if junit is not None and junit.resolve().is_relative_to(artifact.resolve()):
        raise InputError(f"--junit {junit}: is in the artifact, whose files are sealed; write it elsewhere")
    with render.progress(quiet) as progress:
        report = verify_artifact(
            artifact, VerifyOptions(**values), against=against, base=base, torch=torch, progress=progress
        )
    if as_json:
        echo(json.dumps(report.to_json()))
    elif not quiet:
        render.verification(report)
    try:
        if junit is not None:
            write_file(junit, to_junit(report), "--junit")
    finally:
        report.raise_for_failures()  # the verdict counts more than its copy


@click.command()
@click.argument("artifact", type=FilePath())
@common
def inspect(artifact: Path, as_json: bool, quiet: bool) -> None:
    """Check that ARTIFACT is intact and show its contents."""
    from curconvert_runtime import Artifact

    opened = Artifact.open(artifact)
    if as_json:
        echo(json.dumps(opened.manifest))
    elif not quiet:
        render.artifact(opened.manifest)


@click.command()
@click.argument("artifact", type=FilePath())
@click.option(
    "--prompt", "-p", type=Typed(), multiple=True, help="Text to continue. Repeat for a batch. [standard input]"
)
@click.option(
    "--max-new-tokens", type=int, default=128, show_default=True, help="Maximum number of tokens to generate."
)
@click.option("--temperature", type=float, help="Sampling temperature; 0 is greedy. [the model's, otherwise 0]")
@click.option(
    "--top-k", type=int, help="Sample among the K most likely tokens; 0 is no limit. [the model's, otherwise 0]"
)
@click.option(
    "--top-p",
    type=float,
    help="Sample among the most likely tokens up to this total probability. [the model's, otherwise 1]",
)
@click.option(
    "--min-p",
    type=float,
    help="Sample among tokens with this share of the largest probability. [the model's, otherwise 0]",
)
@click.option(
    "--repetition-penalty",
    type=float,
    help="Make tokens that occurred less likely; 1 is no penalty. [the model's, otherwise 1]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sampling.")
@click.option("--stop", type=Typed(), multiple=True, help="Text that ends the answer. Repeat for more.")
@click.option("--chat", is_flag=True, help="Apply the model's chat template to the prompt.")
@_graph_option
@_provider_option
@click.option("--threads", type=int, help="Threads of onnxruntime. [onnxruntime's default]")
@common
def generate(
    artifact: Path, prompt: tuple[str, ...], graph: str, provider: str, threads: int | None, as_json: bool,
    quiet: bool, **values: Any,
) -> None:  # fmt: skip
    """Generate text with ARTIFACT. Needs no torch."""
    from curconvert_runtime.serve.generation import GenerationOptions, stream
    from curconvert_runtime.serve.session import load

    options = GenerationOptions(**values)
    prompts = list(prompt) or [typed_input()]
    session = load(artifact, provider=provider, graph=graph, threads=threads)  # type: ignore[arg-type]  # load checks it
    alone = len(prompts) == 1 and not as_json
    completions = {}
    for piece in stream(session, prompts, options):
        if alone:
            echo(for_stdout(piece.text), nl=False)
        if piece.completion:
            completions[piece.row] = piece.completion
        if lost():
            return
    if alone:
        echo()
    elif as_json:
        fields = ("text", "ids", "finish_reason")
        found = [{name: getattr(done, name) for name in fields} for _, done in sorted(completions.items())]
        echo(json.dumps(found))
    else:
        for _, done in sorted(completions.items()):
            echo(for_stdout(done.text))
