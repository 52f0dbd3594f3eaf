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
from curconvert.compress import silent
from curconvert.execution.local import LocalExecutor
from curconvert.factorization.gram import measured
from curconvert.factorization.tasks import MatrixTask
from curconvert.planning import decoder_linears, layer_of, linear_of, make_plan
from curconvert.production import measure, prepare
from curconvert.selection.indices import select_rows_columns, tensor_rng

STAGES = ("full SVD", "DEIM", "two pseudo-inverses")
RANKS = (32, 64, 128)  # at 128 a Krylov space would be no smaller than the matrices, and Gram matrices serve
Matrix = NDArray[np.float64]


def greedy_deim(basis: Matrix) -> NDArray[np.int64]:
    """Return DEIM's points, step by step, as Sorensen and Embree print it."""
    points = [int(np.abs(basis[:, 0]).argmax())]
    for k in range(1, basis.shape[1]):
        coefficients = np.linalg.solve(basis[points, :k], basis[points, k])
        points.append(int(np.abs(basis[:, k] - basis[:, :k] @ coefficients).argmax()))
    return np.array(points)


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


def agreement(checkpoint: Checkpoint, rank: int) -> tuple[float, float]:
    """Return mean and least share of DEIM's rows and columns that the default finds of those of a full SVD.

    In all linears of every third layer, on |W|: columns' strengths would come from a text, and change little.
    """
    shares = []
    for name, shape in decoder_linears(checkpoint).items():
        if layer_of(name) % 3 or min(shape) <= rank:
            continue
        matrix = ChunkedMatrix(checkpoint.read(name), absolute=True)
        fast, exact = (
            select_rows_columns(matrix, rank, "deim", tensor_rng(0, name), exact_svd=exact_svd)
            for exact_svd in (False, True)
        )
        for ours, theirs in ((fast.rows, exact.rows), (fast.columns, exact.columns)):
            shares.append(len(np.intersect1d(ours, theirs)) / rank)
    return float(np.mean(shares)), min(shares)


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
        seconds: dict[str, float] = {}
        baseline = {p.name: paper(weights[p.name], inputs[p.name].rms, p.rank or 0, seconds) for p in plans}
        theirs.append(seconds)
    for plan in plans:
        tensors = baseline[plan.name]
        other = measured("cur", tensors, plan.rank or 0, weights[plan.name], inputs[plan.name])
        ratios.append(found[plan.name].relative_output_error / other.relative_output_error)
        rows = found[plan.name].tensors["R"]
        same.append(float((rows[:, None] == tensors["R"]).all(-1).any(1).float().mean()))
    agreements = [
        [str(rank), f"{mean:.1%}", f"{least:.1%}"] for rank in RANKS for mean, least in [agreement(checkpoint, rank)]
    ]
    stages = {stage: statistics.median(run[stage] for run in theirs) for stage in STAGES}
    speedups = [sum(run.values()) / own for run, own in zip(theirs, ours, strict=True)]
    publish(
        "paper-pipeline",
        f"""{len(plans)} matrices ({", ".join(sorted({linear_of(p.name) for p in plans}))} of every layer) of {
            MODEL_NAME
        },
rank {given.rank}, {given.rounds} rounds in turns, {cores} cores. {machine()}.

{
            table(
                ["", "seconds, median"],
                [
                    *([f"paper: {stage}", f"{value:.1f}"] for stage, value in stages.items()),
                    ["paper: all", f"{statistics.median(sum(run.values()) for run in theirs):.1f}"],
                    ["`curing`: all, the measurement of the errors included", f"{statistics.median(ours):.1f}"],
                ],
            )
        }

Ratio of the times: median {statistics.median(speedups):.1f}, range {min(speedups):.1f} to {max(speedups):.1f}.
Output error of `curing` over that of the paper's steps, matrix by matrix: median {
            statistics.median(ratios):.4f}, largest
{max(ratios):.4f}. The same rows: {np.mean(same):.1%} on average, {min(same):.1%} at least.

Rows and columns that DEIM finds without a full SVD and with one, all seven linears of every third layer:

{table(["rank", "the same, mean", "least"], agreements)}

Made by `python benchmarks/paper_pipeline.py`.
""",
    )


if __name__ == "__main__":
    main()
