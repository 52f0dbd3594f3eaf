"""Runs a sweep: measures the original once, then makes, verifies and compares an artifact for each point."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from curconvert.artifact.folder import SWEEP, atomic_folder, check_output
from curconvert.artifact.lock import PARTIAL
from curconvert.base.counted import counted
from curconvert.base.dtypes import torch_dtype
from curconvert.base.durable import DiskFullError
from curconvert.base.environment import environment
from curconvert.base.errors import BackendError, CurConvertError, InputError, UnsupportedError
from curconvert.base.progress import silent
from curconvert.base.types import Ids
from curconvert.calibration.batches import IN_MEMORY
from curconvert.checkpoint.dtypes import stored_dtype
from curconvert.checkpoint.linears import total_parameters
from curconvert.checkpoint.types import Checkpoint
from curconvert.estimate.disk import check_space, exported_bytes, needed_bytes
from curconvert.estimate.total import store_within
from curconvert.execution.executor import executing
from curconvert.jobs.export import export
from curconvert.jobs.measure import measure
from curconvert.jobs.prepare import Prepared, first_plan, inputs, prepare, sampled
from curconvert.jobs.produce import produce
from curconvert.jobs.source import open_source
from curconvert.jobs.sweep.options import SweepOptions
from curconvert.jobs.sweep.speed import DecodeSetup, decode_speed
from curconvert.jobs.sweep.table import PLOT, Point, Sweep, fidelity_fields, write_tables
from curconvert.methods.core.context import Context, Measured
from curconvert.methods.core.options import ConvertOptions
from curconvert.methods.core.registry import method_named
from curconvert.options.execution import ExecutionOptions
from curconvert.options.source import SourceOptions
from curconvert_runtime import __version__
from curconvert_runtime.checks.fidelity import Progress, exact_fidelity, text_windows
from curconvert_runtime.checks.metrics import Fidelity
from curconvert_runtime.checks.verification import VerifyOptions, read_text
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.serve.backend import import_onnxruntime
from curconvert_runtime.serve.session import load
from curconvert_runtime.version import installed_versions

_LOCAL = ExecutionOptions()


def sweep(
    source: SourceOptions,
    out: Path,
    options: SweepOptions,
    *,
    overwrite: bool = False,
    execution: ExecutionOptions = _LOCAL,
    progress: Progress = silent,
) -> Sweep:
    """Compress a model to several sizes and write a table and a plot.

    A size that is impossible or that fails gets a row with the reason. The sweep then continues.

    Args:
        source: The checkpoint.
        out: Folder to create. It appears when it is complete.
        options: Methods, sizes and the text to measure on.
        overwrite: Replace an existing sweep.
        execution: Where to factorize, and the memory limit. It does not change the artifacts.
        progress: Called with (stage, done, total).

    Returns:
        Size, quality and speed of each method at each size.

    Raises:
        CurConvertError: No size is possible, or an input is wrong. `out` is then unchanged.
    """
    try:
        from curconvert.jobs.sweep.plot import draw  # noqa: PLC0415 - matplotlib is slow to import, and only used here
    except ImportError as error:
        raise BackendError(f"matplotlib cannot be imported ({error}); run: pip install 'curconvert[convert]'") from None
    import_onnxruntime("cpu")
    execution.check_installed()
    common = ConvertOptions.for_method("auto", **options.settings)
    # Every method is calibrated on the same sequences.
    options = replace(options, settings={**options.settings, "self_text": common.self_text})
    checkpoint = open_source(source)
    text = None if options.text is None else read_text(options.text)
    check_output(out, overwrite, (*inputs(checkpoint, common), *filter(None, [options.text])), SWEEP)
    wanted = [_asked(checkpoint, method, keep, options) for method in options.methods for keep in options.keep]
    possible = [asked for _, asked in wanted if asked is not None]
    if not possible:
        raise InputError(f"no point is possible; {wanted[0][0].folder}: {wanted[0][0].reason}")
    plans = [(asked, first_plan(checkpoint, asked)) for asked in possible]
    stores = [store_within(checkpoint, plan, asked, execution, out.absolute().parent) for asked, plan in plans]
    store = next((store for store in stores if store.on_disk), IN_MEMORY)
    each = [needed_bytes(checkpoint, plan, asked) for asked, plan in plans]
    whole = exported_bytes(checkpoint, checkpoint.companions(), torch_dtype(stored_dtype(checkpoint)), None)
    needed = whole + (sum(each) if options.keep_artifacts else max(each))
    check_space(out, needed)
    prepared = replace(sampled(prepare(checkpoint, common), common, progress), store=store)
    with (
        atomic_folder(out, overwrite, SWEEP, needed) as work,
        TemporaryDirectory(prefix=f"{work.name}.", dir=work.parent) as beside,
        executing(execution) as executor,
    ):
        scratch = Path(beside)
        original = Artifact.open(export(source, scratch / "original", progress=progress).path)
        windows, name = None, _probes_name(prepared)
        if options.text is not None and text is not None:
            sizes = options.window, options.max_tokens
            windows, name = text_windows(original, text, *sizes, common.calibration.begin)
            name = f"{options.text.name}: {name}"
        (scratch / "evidence").mkdir()
        context = prepared.context(common, scratch / "evidence", executor, progress)
        measured = measure(context, possible)
        home = work if options.keep_artifacts else scratch
        runner = _Runner(prepared, context, measured, original, windows, home)
        points = []
        for done, (point, asked) in enumerate(wanted, 1):
            points.append(point if asked is None else runner.point(point, asked))
            if not options.keep_artifacts:
                shutil.rmtree(scratch / point.folder, ignore_errors=True)
            progress("points", done, len(wanted))
        result = Sweep(
            path=out,
            model=checkpoint.path.name,
            parameters_before=total_parameters(checkpoint),
            bytes_before=_weight_bytes(original.path),
            text=name,
            decode=runner.setup.to_json(),
            options=_common_options(common, prepared),
            environment=_environment(),
            points=tuple(points),
            notices=(*checkpoint.notices, *prepared.companions.notices, *prepared.tokens.notices),
        )
        write_tables(result, work)
        draw(result, work / PLOT)
    return result


class _Runner:
    """Converts and measures the points of one sweep.

    Args:
        prepared: The model and its calibration text.
        context: Context of the conversions.
        measured: Results of the passes over the original.
        original: The exported original.
        windows: Token ids to measure fidelity on; None takes the fidelity of the verification.
        home: Folder for the artifacts.
    """

    def __init__(
        self,
        prepared: Prepared,
        context: Context,
        measured: Measured,
        original: Artifact,
        windows: Ids | None,
        home: Path,
    ) -> None:
        self._prepared, self._context, self._measured, self._original = prepared, context, measured, original
        self._windows, self._home = windows, home
        self.setup = DecodeSetup.of(original)

    def point(self, point: Point, options: ConvertOptions) -> Point:
        """Return the point with its results, or with the reason why it has none."""
        context = replace(self._context, settings=options)
        try:
            decided = options.method.decide(context, self._measured)
        except (InputError, UnsupportedError) as error:
            return replace(point, status="impossible", reason=str(error))
        folder = self._home / point.folder
        try:
            with atomic_folder(folder) as work:
                report, _ = produce(
                    work, context, self._prepared.companions, self._measured, decided, options, VerifyOptions()
                )
            assert report is not None
            measured = report.fidelity if self._windows is None else self._exact(folder, self._windows)
            assert measured is not None
            speed = decode_speed(self._original.path, folder, self.setup)
        except DiskFullError:
            raise
        except CurConvertError as error:
            shutil.rmtree(folder, ignore_errors=True)
            return replace(point, status="failed", reason=self._without_place(str(error), point))
        return replace(
            point,
            parameters=decided.parameters_after,
            kept=decided.parameters_after / decided.parameters_before,
            bytes=_weight_bytes(folder),
            decode_original=speed.original,
            decode_compressed=speed.compressed,
            decode_ratio=speed.ratio,
            decode_ratio_min=speed.ratio_min,
            decode_ratio_max=speed.ratio_max,
            **fidelity_fields(measured),
        )

    def _exact(self, folder: Path, windows: Ids) -> Fidelity:
        # `verify` compares the portable graph, so this does the same.
        compressed, original = load(folder, graph="portable"), load(self._original.path, graph="portable")
        return exact_fidelity(compressed, original, windows, self._context.progress)

    def _without_place(self, message: str, point: Point) -> str:
        """Replace the temporary name of a point's folder in a message."""
        name = re.escape(point.folder)
        return re.sub(rf"{re.escape(str(self._home))}/(\.{name}\.curconvert/{PARTIAL}|{name})", point.folder, message)


def _asked(
    checkpoint: Checkpoint, method: str, keep: float, options: SweepOptions
) -> tuple[Point, ConvertOptions | None]:
    """Return a point and its options; if the shapes show that it is impossible, the point with a reason and None."""
    point = Point(method, keep)
    try:
        size = method_named(method).for_share(checkpoint, keep)
        asked = ConvertOptions.for_method(method, **size, **options.settings)
        first_plan(checkpoint, asked)
    except (InputError, UnsupportedError) as error:
        return replace(point, status="impossible", reason=str(error)), None
    return point, asked


def _weight_bytes(folder: Path) -> int:
    """Return the bytes of all weight files; large models have several."""
    return sum(path.stat().st_size for path in folder.glob("model*.safetensors"))


def _probes_name(prepared: Prepared) -> str:
    count, length = prepared.tokens.probes.shape
    return f"{counted(count, 'held-out calibration sequence')} of {length} tokens"


def _common_options(common: ConvertOptions, prepared: Prepared) -> dict[str, object]:
    values = common.to_json()
    shared = {name: values[name] for name in ("seed", "ridge", "rank_multiple", "self_text", "calibration")}
    return {"dtype": prepared.dtype, **shared}


def _environment() -> dict[str, str]:
    return {"curconvert": __version__, **installed_versions(), **environment(), "cpus": str(os.cpu_count())}
