"""Would neighbouring layers' matrices be better off with one basis (Basis Sharing, arXiv 2410.03765)?

Two matrices of the same kind in layers i and i + 1 are approximated at the same number of parameters in two ways:
separately, each by the best rank-r matrix in its own metric; and with one basis for both, in interpolative storage too,
so at a higher rank. `--method auto` stores the one, and with `--share` the other. The error is K-FAC's estimate of the
divergence, `½ tr(F ΔW H ΔWᵀ)`.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import numpy as np
from common import MODEL, MODEL_NAME, machine, publish, table
from curconvert.jobs.stages import measure, prepare, sampled
from numpy.typing import NDArray

from curconvert import CalibrationOptions, ConvertOptions
from curconvert.allocation.sharing import metric_of
from curconvert.base.forms import rank_for_density
from curconvert.base.names import layer_of, linear_of
from curconvert.base.progress import silent
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.linears import decoder_linears
from curconvert.factorization.shared import Metric, SharedBasis, shared_basis

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj")
DENSITIES = (0.9, 0.7, 0.5)


def cost(metric: Metric, product: NDArray[np.float64]) -> float:
    """Return `½ tr(F ΔW H ΔWᵀ)`."""
    change = metric.weight - product
    return 0.5 * float(np.einsum("ij,ij->", metric.fisher @ change, change @ metric.gram))


def alone(metric: Metric, density: float) -> float:
    """Return the cost of the best matrix of the density's rank."""
    m, n = metric.weight.shape
    return float(metric.best_costs()[rank_for_density("interpolative", (m, n), density)])


def together(basis: SharedBasis, density: float) -> float:
    """Return the summed cost of both matrices with one basis, in the same density."""
    m, n = basis.rows.shape
    A, B = basis.factors(rank_for_density("interpolative", (m, n), density))
    products = np.split(A @ B, [len(basis.metrics[0].weight)])
    return sum(cost(metric, product) for metric, product in zip(basis.metrics, products, strict=True))


def main() -> None:
    """Measure, publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--calibration", default="builtin")
    given = parser.parse_args()
    checkpoint = open_checkpoint(given.model)
    calibration = CalibrationOptions(source=given.calibration)
    options = ConvertOptions.for_method("auto", targets=KINDS, calibration=calibration)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        prepared = sampled(prepare(checkpoint, options), options, silent)
        evidence = measure(prepared, [options], Path(folder), silent).evidence
        names = {(linear_of(name), layer_of(name)): name for name in decoder_linears(checkpoint)}
        layers = int(checkpoint.config["num_hidden_layers"])
        for kind in KINDS:
            wanted = [names[kind, layer] for layer in range(layers)]
            metrics = [metric_of(name, checkpoint, evidence, options.ridge) for name in wanted]
            bases = [shared_basis(*pair) for pair in itertools.pairwise(metrics)]
            for density in DENSITIES:
                costs = [alone(metric, density) for metric in metrics]
                apart = [first + second for first, second in itertools.pairwise(costs)]
                ratios = np.array([together(basis, density) for basis in bases]) / np.array(apart)
                rows.append([
                    kind, f"{density}", f"{np.median(ratios):.1f}", f"{ratios.min():.2f} to {ratios.max():.0f}",
                    f"{int((ratios < 1).sum())} of {len(ratios)}",
                ])  # fmt: skip
                print(*rows[-1])
    header = ["matrix", "density", "median of shared / separate", "range", "pairs in which sharing is better"]
    publish(
        "sharing",
        f"""Divergence that K-FAC predicts for two neighbouring layers' matrices with one common basis, over that of the
same two stored separately in as many parameters. {MODEL_NAME}, {calibration.sequences} ×
{calibration.tokens_per_sequence} tokens of {Path(given.calibration).name}, half of the sequences written by the model.
{machine()}.

{table(header, rows)}

Made by `python benchmarks/sharing.py`.
""",
    )


if __name__ == "__main__":
    main()
