"""Prints what the command line shows: progress on stderr, results on stdout. No logic."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from curconvert.base.counted import counted
from curconvert.base.packing import stored_types
from curconvert.cli.terminal import Console, Table
from curconvert_runtime.format.forms import form_of

if TYPE_CHECKING:
    from curconvert.base.plan import Plan
    from curconvert.estimate.total import Estimate
    from curconvert.jobs.bench.result import Bench, Measured, Spread
    from curconvert.jobs.conversion import Conversion
    from curconvert.jobs.heal import Healing
    from curconvert.jobs.resize import Resizing
    from curconvert.jobs.sweep.table import Sweep
    from curconvert_runtime.checks.report import VerificationReport

_STAGES = {
    "sample": "write calibration text",
    "original": "run the original",
    "sensitivity": "measure modules",
    "search": "try a size",
    "widths": "round at every width",
    "compress": "compress",
    "components": "order components",
    "resize": "cut",
    "export": "write weights",
    "parity": "compare graphs",
    "fidelity": "measure fidelity",
    "points": "points of the sweep",
    "starts": "start the models",
    "rounds": "measure",
}
_PIPE_WIDTH = 10_000


def _console() -> Console:
    # No markup: a path or a tensor name may hold brackets. Piped output is searched and compared: no line is cut.
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


@contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a progress callback that draws one bar per stage on stderr."""
    columns = (
        TextColumn("{task.description:>18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    bars, tasks = Progress(*columns, console=Console(stderr=True), disable=quiet), dict[str, TaskID]()

    def update(stage: str, done: int, total: int) -> None:
        bars.start()  # here, because a display without a bar ends with a blank line
        if stage not in tasks:
            tasks[stage] = bars.add_task(_STAGES.get(stage, stage), total=total)
        bars.update(tasks[stage], completed=done, total=total)

    try:
        yield update
    finally:
        if tasks:
            bars.stop()


def _notes(console: Console, notices: tuple[str, ...]) -> None:
    for notice in notices:
        console.print(f"note: {notice}")


def plan_json(plan: Plan, expected: Estimate | None = None) -> dict[str, Any]:
    """Return a plan as JSON, with an estimate of what it takes."""
    fields = {key: value for key, value in asdict(plan).items() if key not in ("biases", "notices")}
    return {
        **fields,
        **({"estimate": asdict(expected), "notices": list(plan.notices)} if expected else {}),
        "parameters_before": plan.parameters_before,
        "parameters_after": plan.parameters_after,
        "matrices": [
            {**asdict(m), "parameters_before": m.parameters_before, "parameters_after": m.parameters_after}
            for m in plan.matrices
        ],
    }


def plan(plan: Plan, expected: Estimate) -> None:
    """Print every matrix, the totals and what they take."""
    table = Table("matrix", "shape", "rank", "parameters", "", box=None)
    for m in plan.matrices:
        change = f"{m.parameters_before:,}" + (f" → {m.parameters_after:,}" if m.rank else "")
        table.add_row(m.name, f"{m.shape[0]} × {m.shape[1]}", str(m.rank or "dense"), change, m.reason or "")
    console = _console()
    _notes(console, plan.notices)
    console.print(table)
    if plan.layers is None:
        chosen = counted(plan.layer_total, "layer")
        console.print(f"{chosen} will be chosen by their scores; the table shows as many others.")
    console.print(_totals(plan.parameters_before, plan.parameters_after))
    console.print(
        f"Estimate for this machine: {expected.seconds:.0f} s and at most {expected.peak_memory_bytes / 1e9:.2f} GB of "
        f"memory, then {expected.verification_seconds:.0f} s and {expected.verification_memory_bytes / 1e9:.2f} GB to "
        f"verify; {expected.temporary_bytes / 1e9:.2f} GB of disk while it runs, {expected.output_bytes / 1e9:.2f} GB "
        "of weights."
    )


def conversion_json(result: Conversion) -> dict[str, Any]:
    """Return a conversion as JSON."""
    return {
        "path": str(result.path),
        "plan": None if result.plan is None else plan_json(result.plan),
        "notices": list(result.notices),
        "peak_memory_bytes": result.peak_memory_bytes,
        "verification": None if result.report is None else result.report.to_json(),
    }


def conversion(result: Conversion) -> None:
    """Print a summary that fits one screen."""
    console = _console()
    _notes(console, result.notices)
    if result.plan is not None:
        compressed = [m for m in result.plan.matrices if m.rank]
        layers = [str(layer) for layer in result.plan.layers or ()]
        places = f"{'layer' if len(layers) == 1 else 'layers'} {', '.join(layers)}"
        if compressed:
            console.print(f"{counted(len(compressed), 'matrix', 'matrices')} compressed in {places}")
        dense = [m for m in result.plan.matrices if m.reason not in (None, "not selected")]
        if dense:
            names = sorted({m.name.split(".")[-2] for m in dense})
            left = counted(len(dense), "selected matrix stays", "selected matrices stay")
            console.print(f"{left} dense ({', '.join(names)}): {dense[0].reason}")
        console.print(_totals(result.plan.parameters_before, result.plan.parameters_after))
    if result.report is not None:
        verification(result.report)
    if result.peak_memory_bytes:
        console.print(f"peak memory before verification: {result.peak_memory_bytes / 1e9:.2f} GB")
    console.print(f"written: {result.path}")


def healing_json(result: Healing) -> dict[str, Any]:
    """Return a healing as JSON."""
    return {
        "path": str(result.path),
        "trained_parameters": result.parameters,
        "curves": {stage: [vars(point) for point in curve] for stage, curve in result.curves.items()},
        "notices": list(result.notices),
        "verification": None if result.report is None else result.report.to_json(),
    }


def healing(result: Healing) -> None:
    """Print what was trained, and where the held-out measure began and ended."""
    console = _console()
    _notes(console, result.notices)
    console.print(f"{result.parameters:,} parameters trained")
    for stage, curve in result.curves.items():
        best = min(curve, key=lambda point: point.held_out)
        console.print(f"{stage}: held out {curve[0].held_out:.4f} → {best.held_out:.4f}, best after step {best.step}")
    if result.report is not None:
        verification(result.report)
    console.print(f"written: {result.path}")


def resizing_json(result: Resizing) -> dict[str, Any]:
    """Return a resizing as JSON."""
    return {
        "path": str(result.path),
        "plan": plan_json(result.plan),
        "verification": None if result.report is None else result.report.to_json(),
    }


def resizing(result: Resizing) -> None:
    """Print the size and the verification."""
    console = _console()
    console.print(_totals(result.plan.parameters_before, result.plan.parameters_after))
    if result.report is not None:
        verification(result.report)
    console.print(f"written: {result.path}")


def verification(report: VerificationReport) -> None:
    """Print every check and the fidelity numbers."""
    console = _console()
    table = Table(box=None, show_header=False)
    for check in report.checks:
        table.add_row(Text("✓", "green") if check.passed else Text("✗", "red"), check.name, check.detail)
    console.print(table)
    if report.fidelity is not None:
        f = report.fidelity
        bound = "" if f.exact else " (lower bound)"
        console.print(
            f"on {report.text}: KL{bound} mean {f.kl.mean:.4f}, median {f.kl.median:.4f}, p90 {f.kl.p90:.4f}, "
            f"p99 {f.kl.p99:.4f}, max {f.kl.max:.3f}; top-1 {f.top1:.3f}; perplexity {f.perplexity_original:.2f} → "
            f"{f.perplexity_compressed:.2f} (ratio {f.perplexity_ratio:.3f})"
        )
    console.print("verified" if report.passed else "NOT verified")


def sweep(result: Sweep) -> None:
    """Print a row per point."""
    console = _console()
    _notes(console, result.notices)
    bound = "" if any(point.kl_exact for point in result.points) else " (lower bound)"
    table = Table(
        "method",
        "keep",
        "parameters",
        "kept",
        "MB",
        f"KL mean{bound}",
        "p99",
        "top-1",
        "perplexity",
        "decode",
        box=None,
    )
    for p in result.points:
        if p.status != "ok":
            table.add_row(p.method, f"{p.keep:g}", p.status)
            continue
        table.add_row(
            p.method, f"{p.keep:g}", f"{p.parameters:,}", f"{p.kept:.3f}", f"{(p.bytes or 0) / 1e6:,.1f}",
            f"{p.kl_mean:.4f}", f"{p.kl_p99:.3f}", f"{p.top1:.3f}",
            f"{p.perplexity_original:.2f} → {p.perplexity_compressed:.2f} ({p.perplexity_ratio:.3f})",
            f"{p.decode_compressed:.1f} tokens/s, "
            f"{p.decode_ratio:.2f} ({p.decode_ratio_min:.2f} to {p.decode_ratio_max:.2f})",
        )  # fmt: skip
    console.print(table)
    for p in result.points:
        if p.reason is not None:
            console.print(f"{p.method} at {p.keep:g} is {p.status}: {p.reason}")
    decode = result.decode
    console.print(
        f"original: {result.parameters_before:,} parameters, {result.bytes_before / 1e6:,.1f} MB; measured on "
        f"{result.text}; decode: batch {decode['batch']}, prompt {decode['prompt_tokens']}, "
        f"{decode['generated_tokens']} generated, medians of {counted(decode['rounds'], 'round')}"
    )
    console.print(f"written: {result.path}")


def bench(result: Bench) -> None:
    """Print a row per workload and model, and what concerns all of them."""
    console = _console()
    table = Table(
        "batch", "prompt", "", "prefill, tokens/s", "first token, ms", "decode, tokens/s", "MB per token",
        "of the bandwidth", box=None,
    )  # fmt: skip
    names = [side.name for side in (result.artifact, result.against) if side is not None]
    for row in result.rows:
        place = (str(row.workload.batch), str(row.workload.prompt_tokens))
        table.add_row(*place, names[0], *_speeds(row.artifact))
        if row.against is not None and row.ratios is not None:
            table.add_row("", "", names[1], *_speeds(row.against))
            table.add_row(
                "", "", "ratio", _spread(row.ratios.prefill, 2), "",
                f"{_spread(row.ratios.decode, 2)}; bytes predict {row.ratios.predicted_decode:.2f}",
            )  # fmt: skip
    console.print(table)
    for side in filter(None, (result.artifact, result.against)):
        memory = "" if side.peak_bytes is None else f", {(side.resident_bytes or 0) / 1e6:,.0f} MB after loading"
        memory += "" if side.peak_bytes is None else f" and {side.peak_bytes / 1e6:,.0f} MB at most"
        console.print(
            f"{side.name}: {side.graph} graph, {side.weight_bytes / 1e6:,.1f} MB of weights per step; loads "
            f"in {side.load_seconds.median:.2f} s, first token {side.start_seconds.median:.2f} s after the process "
            f"starts{memory}"
        )
    options = result.options
    threads = "all threads" if options.threads is None else counted(options.threads, "thread")
    read = "not measured" if result.bandwidth is None else f"{_spread(result.bandwidth, 1, 1e9)} GB/s"
    console.print(
        f"medians (min to max) of {counted(options.rounds, 'round')}, {counted(options.generated_tokens, 'token')} "
        f"generated, provider {options.provider}; memory is read at {read} with {threads}"
    )


def _spread(value: Spread, digits: int, unit: float = 1.0) -> str:
    low, middle, high = (f"{number / unit:,.{digits}f}" for number in (value.min, value.median, value.max))
    return f"{middle} ({low} to {high})"


def _speeds(measured: Measured) -> tuple[str, ...]:
    share = "" if measured.bandwidth_share is None else f"{100 * measured.bandwidth_share:.0f}%"
    return (
        _spread(measured.prefill, 1), _spread(measured.first_token, 1, 1e-3), _spread(measured.decode, 1),
        f"{measured.bytes_per_token / 1e6:,.1f}", share,
    )  # fmt: skip


def artifact(manifest: Mapping[str, Any]) -> None:
    """Print what an artifact holds."""
    console = _console()
    model, source = manifest["model"], manifest["source"]
    quantized = manifest.get("quantization")
    stored = f"{stored_types(quantized)}, the rest {model['dtype']}" if quantized else model["dtype"]
    console.print(f"{source['name']} ({source['kind']}), {model['model_type']}, {stored}")
    console.print(_totals(model["parameters_before"], model["parameters_after"]))
    if calibration := manifest["calibration"]:
        console.print(_calibrated(calibration))
    if quantized:
        console.print(_quantized(quantized))
    table = Table("matrix", "shape", "form", "rank", "output error", "Frobenius error", box=None)
    for m in manifest["matrices"]:
        if form_of(m["form"]).is_compressed:
            # Factors that were trained or cut have no measured errors.
            both = (m["relative_output_error"], m["relative_frobenius_error"])
            errors = ("unknown" if error is None else f"{error:.4f}" for error in both)
            table.add_row(m["name"], f"{m['shape'][0]} × {m['shape'][1]}", m["form"], str(m["rank"]), *errors)
    console.print(table)
    if widths := (quantized or {}).get("widths"):
        console.print(_widths(widths))
    for name, entry in manifest["files"].items():
        console.print(f"{entry['size']:>14,}  {entry['sha256'][:16]}…  {name}")


def _calibrated(calibration: Mapping[str, Any]) -> str:
    begin = calibration.get("begin")
    return (
        f"calibrated on {calibration['source']}: {calibration['sequences']} sequences of "
        f"{calibration['tokens_per_sequence']} tokens, "
        + ("without a begin token" if begin is None else f"each with begin token {begin} first")
    )


def _widths(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of the errors that decided each matrix's bits, and the cost of the chosen width."""
    kinds = tuple(rows[0]["errors"])
    table = Table("matrix", "bits", "cost", *(f"error at {kind}" for kind in kinds[:1]), *kinds[1:], box=None)
    for row in rows:
        errors = (f"{row['errors'][kind]:.4f}" for kind in kinds)
        cost = row["costs"][f"int{row['bits']}"]
        table.add_row(row["name"], str(row["bits"]), f"{cost:.3g}", *errors)
    return table


def _quantized(quantization: Mapping[str, Any]) -> str:
    zeros = "symmetric" if quantization["symmetric"] else "with zero points"
    bits = 8 * quantization["bytes"] / quantization["parameters"]
    return (
        f"{quantization['parameters']:,} parameters in {stored_types(quantization)}, {zeros}, "
        f"{quantization['rounding']} rounding: {quantization['bytes']:,} bytes, "
        f"{bits:.2f} bits each"
    )


def _totals(before: int, after: int) -> str:
    return f"{before:,} → {after:,} parameters ({100 * after / before:.1f}% kept)"
