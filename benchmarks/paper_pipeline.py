"""The factorization stage beside the paper's: `--method curing` against CURing's own steps, at equal settings.

The baseline does what arXiv 2501.04211 prints, in NumPy float64 with all cores: full SVD of |W|∘a, DEIM in Python, two
pseudo-inverses. Ours is the conversion's own code and executor. Both get the same weights and statistics, in turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import MODEL, MODEL_NAME, machine, publish, table
from numpy.typing import NDArray
from torch import Tensor

from curconvert import CalibrationOptions, ConvertOptions
from curconvert.calibration.statistics import InputStatistics
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.types import Checkpoint
from curconvert.chunked import ChunkedMatrix
from curconvert.execution.local import LocalExecutor
from curconvert.factorization.gram import measured
from curconvert.factorization.tasks import MatrixTask
from curconvert.factorization.types import Factorization
from curconvert.original_pass import silent
from curconvert.planning import decoder_linears, layer_of, linear_of, make_plan
from curconvert.production import measure, prepare
from curconvert.selection.bases import exact_bases, krylov_bases, leading_bases
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
    cores = len(os.sched_getaffinity(0))
    ours: list[float] = []
    errors: list[float] = []
    theirs: list[dict[str, float]] = []
    ratios: list[float] = []
    same: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        # Two conversions of one model: so the statistics of all layers are gathered.
        evidence = measure(prepare(checkpoint, options), [options, options], Path(folder), silent).evidence
        inputs: dict[str, InputStatistics] = {plan.name: evidence.statistics(plan.name) for plan in plans}
    weights = {plan.name: checkpoint.read(plan.name) for plan in plans}
    for _ in range(given.rounds):
        start = time.perf_counter()
        tasks = [MatrixTask(p, weights[p.name], None, inputs[p.name], options, torch.float32) for p in plans]
        found = {name: factors for part in LocalExecutor(cores).map(tasks) for name, factors in part.items()}
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        LocalExecutor(cores).map(Errors(found[p.name], weights[p.name], inputs[p.name]) for p in plans)
        errors.append(time.perf_counter() - start)
        seconds: dict[str, float] = {}
        baseline = {p.name: paper(weights[p.name], inputs[p.name].rms, p.rank or 0, seconds) for p in plans}
        theirs.append(seconds)
    for plan in plans:
        tensors = baseline[plan.name]
        other = measured("cur", tensors, plan.rank or 0, weights[plan.name], inputs[plan.name])
        ratios.append(found[plan.name].relative_output_error / other.relative_output_error)
        rows = found[plan.name].tensors["R"]
        same.append(float((rows[:, None] == tensors["R"]).all(-1).any(1).float().mean()))
    agreements = [agreement(checkpoint, rank) for rank in RANKS]
    stages = {stage: statistics.median(run[stage] for run in theirs) for stage in STAGES}
    whole = [sum(run.values()) for run in theirs]
    speedups = [their / own for their, own in zip(whole, ours, strict=True)]
    alone = [their / (own - part) for their, own, part in zip(whole, ours, errors, strict=True)]
    lines = [[f"paper: {stage}", f"{value:.1f}"] for stage, value in stages.items()]
    lines += [["paper: all", f"{statistics.median(whole):.1f}"]]
    lines += [["`curing`: all, the measurement of the errors included", f"{statistics.median(ours):.1f}"]]
    lines += [["`curing`: the measurement of the errors", f"{statistics.median(errors):.1f}"]]
    linears = ", ".join(sorted({linear_of(plan.name) for plan in plans}))
    publish(
        "paper-pipeline",
        f"""{len(plans)} matrices ({linears} of every layer) of {MODEL_NAME}, rank {given.rank}, {given.rounds} rounds
in turns, {cores} cores. {machine()}.

{table(["", "seconds, median"], lines)}

Ratio of the times: median {statistics.median(speedups):.1f}, range {min(speedups):.1f} to {max(speedups):.1f};
without the measurement of the errors, which the paper's steps do not have, median {statistics.median(alone):.1f}.
Output error of `curing` over that of the paper's steps, matrix by matrix: median {statistics.median(ratios):.4f},
largest {max(ratios):.4f}. The same rows: {np.mean(same):.1%} on average, {min(same):.1%} at least.

Share of DEIM's rows and columns that are those of a full SVD, mean and least matrix, all seven linears of every third
layer. By default matrices of this size have their Gram matrix's eigenvectors; a Krylov space serves above 1,024 rows
and columns, and was tried here all the same:

{table(["rank", "default", "Krylov space"], agreements)}

Made by `python benchmarks/paper_pipeline.py`.
""",
    )


if __name__ == "__main__":
    main()
