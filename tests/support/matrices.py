"""Random linear layers: a weight and the statistics of its input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from curconvert.base.plan import MatrixPlan
from curconvert.factorization.types import FactorTask
from curconvert.linalg.metrics import FullMetric
from curconvert.linalg.statistics import InputStatistics
from curconvert.methods.core.context import Context
from curconvert.methods.core.options import ConvertOptions

Matrix = NDArray[np.float64]


class Stored:
    """As much of a checkpoint as a factorization reads."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def read(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def tasks_of(
    options: ConvertOptions,
    plans: Sequence[MatrixPlan],
    statistics: Mapping[str, InputStatistics],
    stored: Any,
    dtype: torch.dtype,
    evidence: Any = None,
) -> list[FactorTask]:
    """The tasks of a conversion that has planned these matrices; `stored` stands for its checkpoint."""
    nothing: Any = None
    return list(options.method.tasks(plans, statistics, Context(stored, options, nothing, dtype, evidence, nothing)))


def random_weight(seed: int, m: int = 24, n: int = 18, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn((m, n), generator=torch.Generator().manual_seed(seed)).to(dtype)


def metric_of(gram: Matrix) -> FullMetric:
    """The metric of a Gram matrix, without a ridge."""
    return FullMetric(InputStatistics(gram, 1, np.zeros(len(gram))), 0.0)


def statistics_of(x: Matrix) -> InputStatistics:
    """Moments of tokens, (tokens, features)."""
    return InputStatistics(x.T @ x / len(x), len(x), x.mean(axis=0))


def correlated(seed: int, n: int = 18) -> InputStatistics:
    """Inputs with a decaying spectrum, mixed over all features."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((6 * n, n)) * np.geomspace(1, 0.05, n) @ rng.standard_normal((n, n))
    return statistics_of(x)


def dead(stats: InputStatistics, *features: int) -> InputStatistics:
    """The same inputs with some features always zero."""
    gram = stats.gram.copy()
    gram[list(features), :] = gram[:, list(features)] = 0
    mean = stats.mean.copy()
    mean[list(features)] = 0
    return InputStatistics(gram, stats.tokens, mean)


def best_error(weight: Matrix, gram: Matrix, rank: int) -> float:
    """Least `‖(W − Ŵ) H^½‖_F` of any rank-r Ŵ (Eckart–Young): what a full SVD of W times a Cholesky factor discards."""
    sigma = np.linalg.svd(weight @ np.linalg.cholesky(gram), compute_uv=False)
    return float(np.linalg.norm(sigma[rank:]))


def error_in(gram: Matrix, error: Matrix) -> float:
    """`‖E H^½‖_F` by its trace."""
    return float(np.sqrt(np.trace(error @ gram @ error.T)))


# Weights and inputs at the edge of what a model can hold: nothing here may fail or give a NaN.
EDGES = ("zero weight", "constant weight", "rank-2 weight", "zero rows", "repeated rows", "dead inputs", "no input")


def edge_case(name: str, m: int = 24, n: int = 18) -> tuple[torch.Tensor, InputStatistics]:
    weight, stats = random_weight(0, m, n), correlated(0, n)
    if name == "zero weight":
        weight = weight * 0
    elif name == "constant weight":
        weight = torch.full((m, n), 0.25, dtype=torch.float64)
    elif name == "rank-2 weight":
        weight = weight[:, :2] @ weight[:2]
    elif name == "zero rows":
        weight[3:] = 0
    elif name == "repeated rows":
        weight = weight[torch.arange(m) % 3]
    elif name == "dead inputs":
        stats = dead(stats, *range(4, n))
    else:
        stats = dead(stats, *range(n))
    return weight, stats
