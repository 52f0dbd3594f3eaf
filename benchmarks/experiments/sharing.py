"""Compares separate bases of neighboring layers' matrices with one shared basis (Basis Sharing, arXiv 2410.03765).

Two matrices of the same kind in layers i and i + 1 are approximated in two ways with the same number of parameters.
`--method auto` stores the best rank-r matrix of each in its own metric. `--share` stores one basis for both, also in
interpolative form, which allows a higher rank. The error is K-FAC's estimate of the divergence, `½ tr(F ΔW H ΔWᵀ)`.
`suite/quality.py` measures the quality of `--share`.

Decided: `--share` is off by default, because the measured divergence does not follow the prediction, and each of the
two layers multiplies by the whole shared factor.
"""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Result, model_arguments, model_name, torch_threads
from benchmarks.fidelity import calibration_name
from curconvert import CalibrationOptions, ConvertOptions
from curconvert.allocation.sharing import metric_of
from curconvert.base.forms import rank_for_density
from curconvert.base.names import layer_of
from curconvert.base.progress import silent
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.linears import decoder_linears
from curconvert.execution.local import LocalExecutor
from curconvert.factorization.shared import Metric, SharedBasis, shared_basis
from curconvert.jobs.measure import measure
from curconvert.jobs.prepare import prepare, sampled

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj")
DENSITIES = (0.9, 0.7, 0.5)


def cost(metric: Metric, product: NDArray[np.float64]) -> float:
    """Return `½ tr(F ΔW H ΔWᵀ)`."""
    change = metric.weight - product
    return 0.5 * float(np.einsum("ij,ij->", metric.fisher @ change, change @ metric.gram))


def alone(metric: Metric, density: float) -> float:
    """Return the cost of the best matrix with the rank that the density allows."""
    m, n = metric.weight.shape
    return float(metric.best_costs()[rank_for_density("interpolative", (m, n), density)])


def together(basis: SharedBasis, density: float) -> float:
    """Return the summed cost of both matrices with one basis, at the same density."""
    m, n = basis.rows.shape
    A, B = basis.factors(rank_for_density("interpolative", (m, n), density))
    products = np.split(A @ B, [len(basis.metrics[0].weight)])
    return sum(cost(metric, product) for metric, product in zip(basis.metrics, products, strict=True))


def main() -> None:
    """Measure all pairs and store the figures."""
    parser = model_arguments("sharing", __doc__)
    parser.add_argument("--calibration", default="builtin")
    given = parser.parse_args()
    checkpoint = open_checkpoint(str(given.model))
    calibration = CalibrationOptions(source=given.calibration)
    options = ConvertOptions.for_method("auto", targets=KINDS, calibration=calibration)
    setting = {
        "model": model_name(given.model), "dtype": "float32", "calibration": calibration_name(calibration)
    }  # fmt: skip
    result = Result(given.out, setting, torch_threads())
    with tempfile.TemporaryDirectory() as folder:
        prepared = sampled(prepare(checkpoint, options), options, silent)
        context = prepared.context(options, Path(folder), LocalExecutor(1), silent)
        measure(context, [options])
        evidence = context.evidence
        names = {(name.split(".")[-2], layer_of(name)): name for name in decoder_linears(checkpoint)}
        layers = int(checkpoint.config["num_hidden_layers"])
        for kind in KINDS:
            wanted = [names[kind, layer] for layer in range(layers)]
            metrics = [metric_of(name, checkpoint, evidence, options.ridge) for name in wanted]
            bases = [shared_basis(*pair) for pair in itertools.pairwise(metrics)]
            for density in DENSITIES:
                costs = [alone(metric, density) for metric in metrics]
                apart = [first + second for first, second in itertools.pairwise(costs)]
                ratios = np.array([together(basis, density) for basis in bases]) / np.array(apart)
                row = {
                    "median": float(np.median(ratios)), "least": float(ratios.min()), "most": float(ratios.max()),
                    "better": int((ratios < 1).sum()), "pairs": len(ratios),
                }  # fmt: skip
                result.add("predicted", row, matrix=kind, density=density)


if __name__ == "__main__":
    main()
