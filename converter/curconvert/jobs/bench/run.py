"""Measures an artifact and, alternating with it, another model. Other load on the machine then affects both alike."""

from __future__ import annotations

import importlib.util
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from curconvert.base.machine import available_cpus
from curconvert.jobs.bench.processes import MeasuringProcess
from curconvert.jobs.bench.result import Bench, Measured, Ratios, Row, Side, Spread
from curconvert.jobs.bench.speed import step_bytes, weight_bytes
from curconvert.options.bench import BenchOptions, Workload
from curconvert.options.source import SourceOptions, check_base
from curconvert_runtime import __version__
from curconvert_runtime.checks.fidelity import Progress
from curconvert_runtime.errors import BackendError
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.files import MANIFEST
from curconvert_runtime.serve.backend import import_onnxruntime
from curconvert_runtime.serve.providers import provider_named
from curconvert_runtime.version import installed_versions

# Starts of each model, at most one per round. The last started process stays for the measurements.
_STARTS = 3


def bench(
    artifact: Path,
    options: BenchOptions,
    *,
    against: str | None = None,
    base: str | None = None,
    progress: Progress | None = None,
) -> Bench:
    """Measure the speed, memory and start time of an artifact.

    Args:
        artifact: An artifact folder.
        options: What to measure.
        against: Other model, measured alternately: an artifact or a checkpoint. A checkpoint is exported to a temporary
            folder first, which needs torch.
        base: The model that `against` changes, if that is an adapter.
        progress: Called with (stage, done, total).

    Returns:
        Speeds as tokens per second, times in seconds, sizes in bytes.

    Raises:
        CurConvertError: A folder, an option or the environment is wrong.
    """
    report = progress or (lambda _stage, _done, _total: None)
    check_base(base, against)
    import_onnxruntime(options.provider)
    opened = Artifact.open(artifact)
    for workload in options.workloads:
        workload.check_context(opened)
    with _other(against, base) as other, ExitStack() as stack:
        for workload in options.workloads:
            if other is not None:
                workload.check_context(other)
        models = [_Model(str(artifact), opened, options)]
        if other is not None:
            models.append(_Model(str(against), other, options))
        starts = min(_STARTS, options.rounds)
        for start in range(starts):
            for model in models:
                model.start(stack, stay=start == starts - 1)
            report("starts", start + 1, starts)
        reader = stack.enter_context(MeasuringProcess()) if provider_named(options.provider).memory == "cpu" else None
        rates: list[float] = []
        total = (options.rounds + 1) * len(options.workloads)
        for turn in range(options.rounds + 1):
            for number, workload in enumerate(options.workloads):
                if reader is not None:
                    rates.append(reader.ask("read", threads=options.threads)["bytes_per_second"])
                for model in models if turn % 2 == 0 else models[::-1]:
                    model.measure(workload, keep=turn > 0)
                report("rounds", turn * len(options.workloads) + number + 1, total)
        bandwidth = Spread.of(rates) if rates else None
        sides = [model.side() for model in models]
        rows = tuple(_row(workload, models, bandwidth) for workload in options.workloads)
    environment = {
        "curconvert": __version__,
        **installed_versions(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": str(available_cpus()),
    }
    return Bench(options, bandwidth, sides[0], sides[1] if len(sides) > 1 else None, rows, environment)


@contextmanager
def _other(against: str | None, base: str | None) -> Iterator[Artifact | None]:
    """Yield the other model as an artifact; None if there is none."""
    if against is None:
        yield None
    elif (Path(against) / MANIFEST).is_file():
        yield Artifact.open(against)
    else:
        if importlib.util.find_spec("torch") is None:
            raise BackendError(
                f"--against {against}: measuring a checkpoint needs torch; export it elsewhere with "
                "`curconvert export`, or run: pip install 'curconvert[convert]'"
            )
        from curconvert.jobs.export import export  # noqa: PLC0415 - torch, which only this branch needs

        with tempfile.TemporaryDirectory(prefix="curconvert-") as folder:
            export(SourceOptions(against, base=base), Path(folder) / "dense")
            yield Artifact.open(Path(folder) / "dense")


class _Model:
    """Starts and measures one of the models, and keeps its results.

    Args:
        name: Name that the user gave.
        artifact: The checked folder.
        options: Workloads, rounds, provider and threads.
    """

    def __init__(self, name: str, artifact: Artifact, options: BenchOptions) -> None:
        self.artifact = artifact
        self._name, self._options = name, options
        self._process: MeasuringProcess | None = None
        self._loaded: list[dict[str, Any]] = []
        self._starts: list[float] = []
        self._peak: int | None = None
        self.timings: dict[Workload, list[dict[str, Any]]] = {workload: [] for workload in options.workloads}

    @property
    def graph(self) -> str:
        """Name of the graph that runs."""
        return str(self._loaded[-1]["graph"])

    def start(self, stack: ExitStack, *, stay: bool) -> None:
        """Start a process, load the artifact and answer a first prompt; with `stay`, keep the process."""
        options = self._options
        begin = time.perf_counter()
        process = MeasuringProcess()
        with ExitStack() as own:
            own.enter_context(process)
            answer = process.ask(
                "load", path=str(self.artifact.path), prompt_tokens=min(options.prompt_tokens),
                provider=options.provider, graph=options.graph, threads=options.threads,
            )  # fmt: skip
            self._starts.append(time.perf_counter() - begin)
            self._loaded.append(answer)
            if stay:
                self._process = process
                stack.push(own.pop_all())

    def measure(self, workload: Workload, *, keep: bool) -> None:
        """Run one request; with `keep`, keep its times."""
        assert self._process is not None
        answer = self._process.ask(
            "measure", batch=workload.batch, prompt_tokens=workload.prompt_tokens,
            generated_tokens=workload.generated_tokens,
        )  # fmt: skip
        self._peak = answer["peak_bytes"]
        if keep:
            self.timings[workload].append(answer)

    def side(self) -> Side:
        """Return the results that do not depend on a workload."""
        return Side(
            name=self._name,
            graph=self.graph,
            weight_bytes=weight_bytes(self.artifact, self.graph),
            load_seconds=Spread.of([answer["load_seconds"] for answer in self._loaded]),
            start_seconds=Spread.of(self._starts),
            resident_bytes=self._loaded[-1]["resident_bytes"],
            peak_bytes=self._peak,
        )

    def prefill(self, workload: Workload) -> list[float]:
        """Return prompt tokens per second, by round."""
        tokens = workload.batch * workload.prompt_tokens
        return [tokens / timing["first_token"] for timing in self.timings[workload]]

    def decode(self, workload: Workload) -> list[float]:
        """Return decoded tokens per second, by round."""
        tokens = workload.batch * workload.generated_tokens
        return [tokens / timing["decode"] for timing in self.timings[workload]]

    def measured(self, workload: Workload, bandwidth: Spread | None) -> Measured:
        """Return the results of one workload."""
        per_token = step_bytes(self.artifact, self.graph, workload) / workload.batch
        decode = Spread.of(self.decode(workload))
        return Measured(
            prefill=Spread.of(self.prefill(workload)),
            first_token=Spread.of([timing["first_token"] for timing in self.timings[workload]]),
            decode=decode,
            bytes_per_token=per_token,
            bandwidth_share=None if bandwidth is None else decode.median * per_token / bandwidth.median,
        )


def _row(workload: Workload, models: list[_Model], bandwidth: Spread | None) -> Row:
    measured = [model.measured(workload, bandwidth) for model in models]
    if len(models) == 1:
        return Row(workload, measured[0], None, None)
    ours, theirs = models
    ratios = Ratios(
        prefill=_ratio(ours.prefill(workload), theirs.prefill(workload)),
        decode=_ratio(ours.decode(workload), theirs.decode(workload)),
        predicted_decode=measured[1].bytes_per_token / measured[0].bytes_per_token,
    )
    return Row(workload, measured[0], measured[1], ratios)


def _ratio(ours: list[float], theirs: list[float]) -> Spread:
    return Spread.of([mine / other for mine, other in zip(ours, theirs, strict=True)])
