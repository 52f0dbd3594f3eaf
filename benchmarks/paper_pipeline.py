"""The factorization stage beside the paper's: `--method curing` against CURing's own steps, at equal settings.

The baseline does what arXiv 2501.04211 prints, in NumPy float64 with all cores: full SVD of |W|∘a, DEIM in Python, two
pseudo-inverses. Ours is the conversion's own code and executor: `curing` as it is, which finds the same rows and
columns, and with the fastest selector and the link that makes up for it. All get the same matrices, ranks and
statistics, in turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import MODEL, MODEL_NAME, machine, publish, table
from curconvert.jobs.stages import measure, prepare
from curconvert.methods.planning import make_plan
from numpy.typing import NDArray
from torch import Tensor

from curconvert import CalibrationOptions, ConvertOptions
from curconvert.base.names import layer_of, linear_of
from curconvert.base.progress import silent
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.linears import decoder_linears
from curconvert.checkpoint.types import Checkpoint
from curconvert.execution.local import LocalExecutor
from curconvert.factorization.measured import measured
from curconvert.factorization.tasks import MatrixTask
from curconvert.factorization.types import Factorization
from curconvert.linalg.bases import exact_bases, krylov_bases, leading_bases
from curconvert.linalg.chunked import ChunkedMatrix
from curconvert.linalg.statistics import InputStatistics
from curconvert.selection.indices import deim, tensor_rng

STAGES = ("full SVD", "DEIM", "two pseudo-inverses")
RANKS = (32, 64, 128)
Matrix = NDArray[np.float64]


def greedy_deim(basis: Matrix) -> NDArray[np.int64]:
    """Return DEIM's points, step by step, as Sorensen and Embree print it."""
    points = [int(np.abs(basis[:, 0]).argmax())]
    for k in range(1, basis.shape[1]):
        coefficients = np.linalg.solve(basis[points, :k], basis[points, k])
        points.append(int(np.abs(basis[:, k] - basis[:, :k] @ coefficients).argmax()))
    return np.array(points)


@dataclass(frozen=True)
class Errors:
    """The part of a factorization that measures what it made."""

    factors: Factorization
    weight: Tensor
    statistics: InputStatistics

    def run(self) -> Factorization:
        """Measure again."""
        return measured("cur", self.factors.tensors, self.factors.rank, self.weight, self.statistics)


def paper(weight: Tensor, rms: Matrix, rank: int, seconds: dict[str, float]) -> dict[str, Tensor]:
    """Factorize as the paper does, and add the seconds of each stage."""
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


def agreement(checkpoint: Checkpoint, rank: int) -> list[str]:
    """Return the shares of DEIM's rows and columns that are those of a full SVD: by default, and in a Krylov space.

    In all linears of every third layer, on |W|: its singular values are as close to each other as those of |W|∘a.
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
                continue  # no smaller than the matrix
            for ours, theirs in zip(bases(matrix, rank, rng), exact, strict=True):
                shares.append(len(np.intersect1d(deim(ours), deim(theirs))) / rank)
    return [str(rank), *(f"{np.mean(x):.1%}, {min(x):.1%}" if x else "–" for x in (default, krylov))]


@dataclass
class Ours:
    """Rounds of one setting, and its factors.

    Attributes:
        given: Options beside `--method curing`.
        seconds: Of the tasks, the measurement of the errors included.
        errors: Seconds of that measurement, made again alone.
        found: Factors by weight name.
    """

    given: dict[str, Any]
    seconds: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    found: dict[str, Factorization] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The command line's options."""
        options = {"selector": "--select", "link": "--link"}
        return " ".join(["`curing", *(f"{options[key]} {value}" for key, value in self.given.items())]) + "`"

    def run(self, tasks: list[MatrixTask], executor: LocalExecutor) -> None:
        """Add a round."""
        start = time.perf_counter()
        self.found = {name: factors for part in executor.map(tasks) for name, factors in part.items()}
        self.seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        executor.map(Errors(self.found[task.plan.name], task.weight, task.statistics) for task in tasks)
        self.errors.append(time.perf_counter() - start)

    def speedups(self, theirs: list[float]) -> tuple[str, str]:
        """Return the ratio of the times with and without the errors: median and range."""
        alone = [own - errors for own, errors in zip(self.seconds, self.errors, strict=True)]
        return _range(theirs, self.seconds), _range(theirs, alone)


def _range(theirs: list[float], own: list[float]) -> str:
    ratios = [their / mine for their, mine in zip(theirs, own, strict=True)]
    return f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"


def same_rows(found: Tensor, theirs: Tensor) -> float:
    """Return the share of rows that are among others."""
    return float((found[:, None] == theirs).all(-1).any(1).float().mean())


def main() -> None:
    """Measure, publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    checkpoint = open_checkpoint(given.model)
    calibration = CalibrationOptions(sequences=32)
    options = ConvertOptions.for_method("curing", rank=given.rank, layers="all", calibration=calibration)
    plans = [matrix for matrix in make_plan(checkpoint, options).matrices if matrix.rank is not None]
    with tempfile.TemporaryDirectory() as folder:
        # Two conversions of one model: so the statistics of all layers are gathered.
        evidence = measure(prepare(checkpoint, options), [options, options], Path(folder), silent).evidence
        inputs: dict[str, InputStatistics] = {plan.name: evidence.statistics(plan.name) for plan in plans}
    weights = {plan.name: checkpoint.read(plan.name) for plan in plans}
    cores = len(os.sched_getaffinity(0))
    ours = [Ours({}), Ours({"selector": "lu", "link": "full"})]
    theirs: list[dict[str, float]] = []
    for _ in range(given.rounds):
        for own in ours:
            chosen = replace(options, **own.given)
            tasks = [MatrixTask(p, weights[p.name], None, inputs[p.name], chosen, torch.float32) for p in plans]
            own.run(tasks, LocalExecutor(cores))
        theirs.append({})
        baseline = {p.name: paper(weights[p.name], inputs[p.name].rms, p.rank or 0, theirs[-1]) for p in plans}
    whole = [sum(run.values()) for run in theirs]
    stages = {stage: statistics.median(run[stage] for run in theirs) for stage in STAGES}
    lines = [[f"paper: {stage}", f"{value:.1f}"] for stage, value in stages.items()]
    lines += [["paper: all", f"{statistics.median(whole):.1f}"]]
    others = {
        p.name: measured("cur", baseline[p.name], p.rank or 0, weights[p.name], inputs[p.name]).relative_output_error
        for p in plans
    }
    compared: list[list[str]] = []
    for own in ours:
        lines += [[own.label, f"{statistics.median(own.seconds):.1f}"]]
        lines += [[f"{own.label}: of these, measuring the errors", f"{statistics.median(own.errors):.1f}"]]
        ratios = [own.found[name].relative_output_error / other for name, other in others.items()]
        rows = [same_rows(own.found[name].tensors["R"], baseline[name]["R"]) for name in others]
        errors = f"{statistics.median(ratios):.4f} (at most {max(ratios):.4f})"
        compared.append([own.label, *own.speedups(whole), errors, f"{np.mean(rows):.1%} (at least {min(rows):.1%})"])
    agreements = [agreement(checkpoint, rank) for rank in RANKS]
    linears = ", ".join(sorted({linear_of(plan.name) for plan in plans}))
    heads = ["", "times as fast", "without the errors", "output error over the paper's", "the same rows"]
    publish(
        "paper-pipeline",
        f"""{len(plans)} matrices ({linears} of every layer) of {MODEL_NAME}, rank {given.rank}, {given.rounds} rounds
in turns, {cores} cores. {machine()}.

{table(["", "seconds, median"], lines)}

Beside the paper's steps, which measure no errors of what they made (median and range over rounds, or over matrices):

{table(heads, compared)}

Share of DEIM's rows and columns that are those of a full SVD, mean and least matrix, all seven linears of every third
layer. By default matrices of this size have their Gram matrix's eigenvectors; a Krylov space serves above 1,024 rows
and columns, and was tried here all the same:

{table(["rank", "default", "Krylov space"], agreements)}

Made by `python benchmarks/paper_pipeline.py`.
""",
    )


if __name__ == "__main__":
    main()
