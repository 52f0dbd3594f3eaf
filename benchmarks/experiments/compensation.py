"""Compares a low-rank correction of the rounding error with int8 for some matrices, at equal bytes.

EoRA (arXiv 2410.21271) adds a low-rank matrix to a quantized one: the best rank-r approximation of the rounding error
in the metric of the inputs. This script measures its best case, the truncated SVD of ΔW·H^½ in float16. The same bytes
can store some matrices in int8 instead of int4, as `--bits-per-weight` does.

Decided: curconvert adds no low-rank correction, because at equal bytes int8 for some matrices loses less and needs no
further product.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Result, model_arguments, model_name, torch_threads
from benchmarks.fidelity import calibration_name
from curconvert import CalibrationOptions, ConvertOptions
from curconvert.base.names import layer_of
from curconvert.base.progress import silent
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.linears import decoder_linears
from curconvert.execution.local import LocalExecutor
from curconvert.jobs.measure import measure
from curconvert.jobs.prepare import prepare
from curconvert.linalg.gram import output_norm, square_root
from curconvert.linalg.statistics import InputStatistics
from curconvert.options.targets import LINEARS
from curconvert.quantization.rounding import quantize
from curconvert_runtime.format.quantized import Layout

Matrix = NDArray[np.float64]
BITS = (4.75, 5.0, 5.5, 6.0)
_INT4, _INT8 = Layout(4, 64, True), Layout(8, 32, True)
_FACTOR_BITS = 16


@dataclass(frozen=True)
class Loss:
    """Relative output errors of one quantized matrix.

    Attributes:
        shape: (m, n).
        outputs: E‖W x‖².
        tails: E‖(ΔW − its best rank-r approximation) x‖² / outputs, for each r from 0, in int4.
        int8: E‖ΔW x‖² / outputs, in int8.
    """

    shape: tuple[int, int]
    outputs: float
    tails: NDArray[np.float64]
    int8: float

    def corrected(self, bits: float) -> float:
        """Return the loss in int4 with the largest correction that fits into `bits` per weight."""
        m, n = self.shape
        rank = int((bits - bits_of(_INT4, n)) * m * n / (_FACTOR_BITS * (m + n)))
        return float(self.tails[max(0, min(rank, len(self.tails) - 1))])


def bits_of(layout: Layout, width: int) -> float:
    """Return the stored bits per weight, including scales and padding."""
    blocks = -(-width // layout.block_size)
    return blocks * (layout.block_size * layout.bits + 32) / width


def loss_of(name: str, weight: Matrix, statistics: InputStatistics, stored: dict[str, Matrix]) -> Loss:
    """Return the errors of one matrix, on the same statistics that its rounding used."""
    root, whole = square_root(statistics.gram), output_norm(weight, statistics.gram) ** 2
    singular = np.linalg.svd((weight - stored["int4"]) @ root, compute_uv=False) ** 2 / whole
    tails = np.append(np.cumsum(singular[::-1])[::-1], 0.0)
    m, n = weight.shape
    return Loss((m, n), whole, tails, output_norm(weight - stored["int8"], statistics.gram) ** 2 / whole)


def mixed(losses: list[Loss], bits: float) -> float:
    """Return the mean loss if int8 is used as far as the bits allow, first where it gains most per bit."""
    sizes = [m * n for m, n in (loss.shape for loss in losses)]
    extra = [
        (bits_of(_INT8, loss.shape[1]) - bits_of(_INT4, loss.shape[1])) * size
        for loss, size in zip(losses, sizes, strict=True)
    ]
    left = sum((bits - bits_of(_INT4, loss.shape[1])) * size for loss, size in zip(losses, sizes, strict=True))
    found = [float(loss.tails[0]) for loss in losses]
    for index in sorted(range(len(losses)), key=lambda i: (losses[i].int8 - found[i]) / extra[i]):
        if extra[index] <= left:
            left -= extra[index]
            found[index] = losses[index].int8
    return float(np.mean(found))


def main() -> None:
    """Measure the matrices and store the figures."""
    parser = model_arguments("compensation", __doc__)
    parser.add_argument("--calibration", default="builtin", help="calibration text")
    parser.add_argument("--every", type=int, default=5, help="measure one of this many layers")
    given = parser.parse_args()
    checkpoint = open_checkpoint(str(given.model))
    calibration = CalibrationOptions(source=given.calibration, sequences=64)
    options = ConvertOptions.for_method("pifa", density=0.8, layers="all", targets=LINEARS, calibration=calibration)
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        context = prepare(checkpoint, options).context(options, Path(folder), LocalExecutor(1), silent)
        measure(context, [options, options])  # with two conversions, `measure` collects statistics of all linears
        evidence = context.evidence
        for name in decoder_linears(checkpoint):
            if layer_of(name) % given.every:
                continue
            statistics, weight = evidence.statistics(name), checkpoint.read(name)
            stored = {
                kind: quantize(name, weight, layout, statistics.gram).rows().double().numpy()
                for kind, layout in (("int4", _INT4), ("int8", _INT8))
            }
            losses.append(loss_of(name, weight.double().numpy(), statistics, stored))
    setting = {
        "model": model_name(given.model), "dtype": "float32",
        "linears": f"{len(losses)}, of every {given.every}th layer",
        "int4": "in blocks of 64, gptq", "calibration": calibration_name(calibration),
    }  # fmt: skip
    result = Result(given.out, setting, torch_threads())
    plain = float(np.mean([loss.tails[0] for loss in losses]))
    result.add("rows", {"rounded": plain}, bits="4.5, int4 alone")
    for bits in BITS:
        corrected = float(np.mean([loss.corrected(bits) for loss in losses]))
        result.add("rows", {"corrected": corrected, "mixed": mixed(losses, bits)}, bits=f"{bits:g}")


if __name__ == "__main__":
    main()
