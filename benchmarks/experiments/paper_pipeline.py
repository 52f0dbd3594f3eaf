"""Compares the factorization time of `--method curing` with CURing's published steps, at equal settings.

The baseline runs the steps of arXiv 2501.04211 in NumPy float64 on all cores: full SVD of |W|∘a, DEIM in Python, two
pseudo-inverses. The other side is the conversion's own code and executor. It runs `curing` by default, which finds the
same rows and columns, and with the fastest selector and a linking matrix that compensates for it. All get the same
matrices, ranks and statistics, and run alternately.

Decided: DEIM uses the smaller Gram matrix and no full SVD, because both give the same points and the Gram matrix takes
a fraction of the time; only large matrices use a Krylov space, which finds fewer of these points.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.common import Result, model_arguments, model_name, torch_threads
from benchmarks.suite.serving import span
from curconvert import CalibrationOptions, ConvertOptions
from curconvert.base.names import layer_of
from curconvert.base.progress import silent
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.linears import decoder_linears
from curconvert.checkpoint.types import Checkpoint
from curconvert.execution.local import LocalExecutor
from curconvert.factorization.measured import measured
from curconvert.factorization.types import Factorization
from curconvert.jobs.measure import measure
from curconvert.jobs.prepare import prepare
from curconvert.linalg.bases import exact_bases, krylov_bases, leading_bases
from curconvert.linalg.chunked import ChunkedMatrix
from curconvert.linalg.statistics import InputStatistics
from curconvert.methods.core.matrixwise import MatrixTask, Matrixwise
from curconvert.selection.indices import deim, tensor_rng

STAGES = ("full SVD", "DEIM", "two pseudo-inverses")
RANKS = (32, 64, 128)
Matrix = NDArray[np.float64]


def greedy_deim(basis: Matrix) -> NDArray[np.int64]:
    """Return DEIM's points, computed step by step as in Sorensen and Embree."""
    points = [int(np.abs(basis[:, 0]).argmax())]
    for k in range(1, basis.shape[1]):
        coefficients = np.linalg.solve(basis[points, :k], basis[points, k])
        points.append(int(np.abs(basis[:, k] - basis[:, :k] @ coefficients).argmax()))
    return np.array(points)


@dataclass(frozen=True)
class Errors:
    """Task for the part of a factorization that measures its errors."""

    factors: Factorization
    weight: Tensor
    statistics: InputStatistics

    def run(self) -> Factorization:
        """Measure the errors again."""
        return measured("cur", self.factors.tensors, self.factors.rank, self.weight, self.statistics)


def paper(weight: Tensor, rms: Matrix, rank: int, seconds: dict[str, float]) -> dict[str, Tensor]:
    """Return the paper's factors, and add the seconds of each stage to `seconds`."""
    W = weight.double().numpy()
    marks = [time.perf_counter()]
    left, _, right = np.linalg.svd(np.abs(W) * rms)  # "full", as the paper says: all vectors of both sides
    marks.append(time.perf_counter())
    rows, columns = greedy_deim(left[:, :rank]), greedy_deim(right[:rank].T)
    marks.append(time.perf_counter())
    C, R = W[:, columns], W[rows]
    U = np.linalg.pinv(C) @ W @ np.linalg.pinv(R)
    marks.append(time.perf_counter())
    for stage, begin, end in zip(STAGES, marks, marks[1:], strict=False):
        seconds[stage] = seconds.get(stage, 0.0) + end - begin
    return {
        name: torch.from_numpy(np.ascontiguousarray(part)).to(weight.dtype)
        for name, part in zip("CUR", (C, U, R), strict=True)
    }


def agreement(checkpoint: Checkpoint, rank: int) -> dict[str, dict[str, float]]:
    """Return the share of DEIM's rows and columns that agree with a full SVD, by default and with a Krylov space.

    It covers all linears of every third layer, on |W|, whose singular values are as close to each other as those of
    |W|∘a.
    """
    default: list[float] = []
    krylov: list[float] = []
    for name, shape in decoder_linears(checkpoint).items():
        if layer_of(name) % 3 or min(shape) <= rank:
            continue
        matrix, rng = ChunkedMatrix(checkpoint.read(name), absolute=True), tensor_rng(0, name)
        exact = exact_bases(matrix.dense(), rank)[:2]
        for bases, shares in ((leading_bases, default), (krylov_bases, krylov)):
            if bases is krylov_bases and 6 * (rank + 16) > min(shape):
                continue  # the Krylov space would not be smaller than the matrix
            for ours, theirs in zip(bases(matrix, rank, rng), exact, strict=True):
                shares.append(len(np.intersect1d(deim(ours), deim(theirs))) / rank)
    both = {"default": default, "krylov": krylov}
    return {name: {"mean": float(np.mean(x)), "least": float(min(x))} for name, x in both.items() if x}


@dataclass
class Ours:
    """Rounds of one setting of curconvert, and its factors.

    Attributes:
        given: Options besides `--method curing`.
        seconds: Seconds of the tasks in each round, including the measurement of errors.
        errors: Seconds of that measurement alone.
        found: Factors by weight name.
    """

    given: dict[str, Any]
    seconds: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    found: dict[str, Factorization] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Options as on the command line."""
        options = {"selector": "--select", "link": "--link"}
        return " ".join(["`curing", *(f"{options[key]} {value}" for key, value in self.given.items())]) + "`"

    def run(self, tasks: list[MatrixTask], executor: LocalExecutor) -> None:
        """Run and time one round."""
        start = time.perf_counter()
        self.found = {name: factors for part in executor.map(tasks) for name, factors in part.items()}
        self.seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        executor.map(Errors(self.found[task.plan.name], task.weight, task.statistics) for task in tasks)
        self.errors.append(time.perf_counter() - start)

    def speedups(self, theirs: list[float]) -> dict[str, dict[str, float]]:
        """Return the ratios of times, with and without the measurement of errors: median and range."""
        alone = [own - errors for own, errors in zip(self.seconds, self.errors, strict=True)]
        both = {"faster": self.seconds, "faster_alone": alone}
        return {
            name: span([their / mine for their, mine in zip(theirs, own, strict=True)]) for name, own in both.items()
        }


def same_rows(found: Tensor, theirs: Tensor) -> float:
    """Return the share of rows of `found` that are also rows of `theirs`."""
    return float((found[:, None] == theirs).all(-1).any(1).float().mean())


def main() -> None:
    """Measure both sides and store the figures."""
    parser = model_arguments("paper_pipeline", __doc__)
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    checkpoint = open_checkpoint(str(given.model))
    calibration = CalibrationOptions(sequences=32)
    options = ConvertOptions.for_method("curing", rank=given.rank, layers="all", calibration=calibration)
    plans = [matrix for matrix in options.method.plan(checkpoint, options).matrices if matrix.rank is not None]
    with tempfile.TemporaryDirectory() as folder:
        # With two conversions, `measure` collects the statistics of all layers.
        context = prepare(checkpoint, options).context(options, Path(folder), LocalExecutor(1), silent)
        measure(context, [options, options])
        inputs: dict[str, InputStatistics] = {plan.name: context.evidence.statistics(plan.name) for plan in plans}
    weights = {plan.name: checkpoint.read(plan.name) for plan in plans}
    cores = len(os.sched_getaffinity(0))
    ours = [Ours({}), Ours({"selector": "lu", "link": "full"})]
    theirs: list[dict[str, float]] = []
    for _ in range(given.rounds):
        for own in ours:
            chosen = replace(options.method, **own.given)
            assert isinstance(chosen, Matrixwise)
            tasks = [
                MatrixTask(p, weights[p.name], None, inputs[p.name], chosen, options, torch.float32) for p in plans
            ]
            own.run(tasks, LocalExecutor(cores))
        theirs.append({})
        baseline = {p.name: paper(weights[p.name], inputs[p.name].rms, p.rank or 0, theirs[-1]) for p in plans}
    linears = " and ".join(sorted({plan.name.split(".")[-2] for plan in plans}))
    setting = {
        "model": model_name(given.model), "dtype": "float32", "matrices": f"{len(plans)}: {linears} of every layer",
        "rank": given.rank, "rounds": given.rounds,
    }  # fmt: skip
    result = Result(given.out, setting, torch_threads())
    whole = [sum(run.values()) for run in theirs]
    stages = {stage: statistics.median(run[stage] for run in theirs) for stage in STAGES}
    for stage, value in (stages | {"all": statistics.median(whole)}).items():
        result.add("seconds", {"seconds": value}, stage=f"paper: {stage}")
    others = {
        p.name: measured("cur", baseline[p.name], p.rank or 0, weights[p.name], inputs[p.name]).relative_output_error
        for p in plans
    }
    for own in ours:
        result.add("seconds", {"seconds": statistics.median(own.seconds)}, stage=own.label)
        measuring = f"{own.label}: of these, measuring the errors"
        result.add("seconds", {"seconds": statistics.median(own.errors)}, stage=measuring)
        ratios = [own.found[name].relative_output_error / other for name, other in others.items()]
        rows = [same_rows(own.found[name].tensors["R"], baseline[name]["R"]) for name in others]
        row = {"error": span(ratios), "rows": {"mean": float(np.mean(rows)), "least": min(rows)}}
        result.add("beside", own.speedups(whole) | row, setting=own.label)
    for rank in RANKS:
        result.add("agreement", agreement(checkpoint, rank), rank=rank)


if __name__ == "__main__":
    main()
