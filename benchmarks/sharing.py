"""Would neighbouring layers' matrices be better off with one basis (Basis Sharing, arXiv 2410.03765)?

Two matrices of the same kind in layers i and i + 1 are approximated at the same number of parameters in two ways:
separately, each by the best rank-r matrix in its own metric, as `--method auto` stores it; and stacked, with one set of
right factors for both, in interpolative storage too, so at a higher rank. The shared basis is the leading right
singular space of the stacked, weighted matrices in the mean of both input metrics; the left factors are then optimal in
each matrix's own metric. The error is K-FAC's estimate of the divergence, `½ tr(F ΔW H ΔWᵀ)`.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import numpy as np
import scipy.linalg
from common import MODEL, MODEL_NAME, machine, publish, table
from numpy.typing import NDArray

from curconvert import CalibrationOptions, ConvertOptions
from curconvert.allocation.evidence import Evidence
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.types import Checkpoint
from curconvert.compress import silent
from curconvert.factorization.gram import ridged, solve_right
from curconvert.factorization.two_sided import DAMPING, damped, two_sided
from curconvert.planning import decoder_linears, layer_of, linear_of, rank_for_density
from curconvert.production import measure, prepare, sampled

KINDS = ("q_proj", "k_proj", "v_proj", "o_proj")
DENSITIES = (0.9, 0.7, 0.5)
Matrix = NDArray[np.float64]


class Linear:
    """One matrix W, (m, n), its metric H, (n, n), and F, (m, m)."""

    def __init__(self, name: str, checkpoint: Checkpoint, evidence: Evidence, ridge: float) -> None:
        self.weight = checkpoint.read(name).double().numpy()
        self.gram = ridged(evidence.statistics(name).gram, ridge)
        self.fisher = damped(evidence.fisher(name), DAMPING)

    def cost(self, change: Matrix) -> float:
        """Return `½ tr(F ΔW H ΔWᵀ)`."""
        return 0.5 * float(np.einsum("ij,ij->", self.fisher @ change, change @ self.gram))

    def alone(self, density: float) -> float:
        """Return the cost of the best matrix of the density's rank."""
        rank = rank_for_density("interpolative", self.weight.shape, density)
        A, B = two_sided(self.weight, self.gram, self.fisher).factors(rank)
        return self.cost(self.weight - A @ B)

    def within(self, basis: Matrix) -> float:
        """Return the cost of the best matrix whose rows lie in the span of a basis, (r, n)."""
        weighted = self.gram @ basis.T
        return self.cost(self.weight - solve_right(self.weight @ weighted, basis @ weighted) @ basis)


def shared(pair: tuple[Linear, Linear], density: float) -> float:
    """Return the summed cost of both matrices with one basis."""
    rows, n = sum(len(linear.weight) for linear in pair), pair[0].weight.shape[1]
    rank = rank_for_density("interpolative", (rows, n), density)
    mean = (pair[0].gram + pair[1].gram) / 2
    values, vectors = scipy.linalg.eigh(mean)
    root = vectors * np.sqrt(np.maximum(values, 0))
    # ‖F^½ W S‖ summed over both matrices, S Sᵀ the mean metric: its right singular space, back in W's coordinates.
    energy = sum(linear.weight.T @ linear.fisher @ linear.weight for linear in pair)
    _, right = scipy.linalg.eigh(root.T @ energy @ root)
    inverse = vectors / np.sqrt(np.maximum(values, values[-1] * 1e-12))
    basis = right[:, : -rank - 1 : -1].T @ inverse.T
    return sum(linear.within(basis) for linear in pair)


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
            linears = [Linear(names[kind, layer], checkpoint, evidence, options.ridge) for layer in range(layers)]
            for density in DENSITIES:
                alone = [linear.alone(density) for linear in linears]
                together = [shared(pair, density) for pair in itertools.pairwise(linears)]
                apart = [first + second for first, second in itertools.pairwise(alone)]
                ratios = np.array(together) / np.array(apart)
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
