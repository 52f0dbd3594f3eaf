"""Estimates the time of a conversion: the flops and bytes of each stage over the rates of a machine."""

from __future__ import annotations

from collections.abc import Iterable

from curconvert.base.plan import MatrixPlan
from curconvert.base.roles import Role
from curconvert.calibration.backward import GRADIENT_TOKENS
from curconvert.calibration.probes import PARITY_LENGTHS
from curconvert.estimate.rates import Machine
from curconvert.estimate.workload import Workload
from curconvert.families.roles import role_of
from curconvert.methods.core.costs import LAPACK
from curconvert.training.spectrum import BATCH
from curconvert_runtime.format.probes import DECODE_STEPS
from curconvert_runtime.format.quantized import BITS

_START = 3.0  # seconds until Python has imported torch, transformers and onnx
_GRAPH = 0.02  # seconds to build both graphs, for each decoder block
_ALONE = 0.4  # speed of one short sequence, as a share of a batch's speed
_AS_FAR = 0.5  # average share of a block that runs before one of its inputs
_SOFTMAX = 60.0  # bytes moved per logit to compute a float64 probability: about a dozen passes
_BATCHED = 0.7  # speed of single tokens of many sequences, as a share of the speed of whole sequences
_BACK = 2.5  # time of a block's forward and backward pass, over its forward pass
_SESSIONS = 5  # onnxruntime sessions in a verification; each rearranges the weights
_TABLES = 5  # how often embedding and lm_head are read
_WEIGHTS = 3  # how often every other weight is read


def seconds(work: Workload, machine: Machine, opening: float, source: int, output: int) -> float:
    """Return the wall time of a conversion without its verification, from the start of the process.

    Args:
        work: The conversion.
        machine: Rates of the machine.
        opening: Seconds that opening the checkpoint takes.
        source: Bytes of the checkpoint.
        output: Bytes of the artifact's weights.
    """
    reading = (_WEIGHTS * work.whole + _TABLES * work.head) / machine.load
    found = _START + opening + reading + _GRAPH * work.layers
    found += _answers(work, machine) + _calibration(work, machine) + _journal(work, machine)
    if work.options.needs.gradients:
        found += _way_back(work, machine)
    if work.options.needs.curves:
        found += _writing(work, machine) + sum(_pricing(m.name, m.shape, machine) for m in work.compressed)
    if work.options.needs.resident:
        found += _learning(work, machine)
    found += factorizations(work, machine)
    return found + (source + output) / machine.digest + output * (1 / machine.write + 1 / machine.copy)


def verification(work: Workload, machine: Machine, output: int) -> float:
    """Return the wall time of the verification.

    Args:
        work: The conversion.
        machine: Rates of the machine.
        output: Bytes of the artifact's weights.
    """
    sequences, alone = work.probes + sum(PARITY_LENGTHS) * _SESSIONS, DECODE_STEPS * _SESSIONS * output
    # Decoding only reads: half the bytes that `copy` counts.
    found = _forward(work) * sequences / machine.block + alone / (2 * machine.copy)
    found += _SOFTMAX * work.probes * work.vocabulary / machine.copy
    return found + 2 * output / machine.digest + 2 * _SESSIONS * output / machine.copy


def _forward(work: Workload) -> float:
    """Return the flops of one token through the model, lm_head included."""
    return 2.0 * (work.whole + work.head)


def _answers(work: Workload, machine: Machine) -> float:
    """Return the seconds to run the original on the probes and the compressed model on the parity sequences."""
    alone = sum(PARITY_LENGTHS) / _ALONE
    found = 2.0 * work.whole * (work.probes + alone) / machine.block
    found += 2.0 * work.head * (work.probes + sum(PARITY_LENGTHS)) / machine.single
    return found + _SOFTMAX * work.probes * work.vocabulary / machine.copy


def _calibration(work: Workload, machine: Machine) -> float:
    """Return the seconds to run the calibration text and form the Gram matrices of linears' inputs."""
    options, flops = work.options, 2.0 * work.whole * work.tokens
    runs = 0.0 if work.knows_statistics else _block_runs(work) / work.layers
    exact = options.needs.gradients or not work.sixteen_bits
    first = flops * work.calibrates_first / (machine.block if exact else machine.half)
    second = flops * runs / (machine.half if work.sixteen_bits else machine.block)
    grams = 2.0 * work.tokens * sum(n**2 for n in work.grams) * (2 if options.compares_inputs else 1)
    return first + second + grams / (machine.single if work.options.needs.curves else machine.double)


def _block_runs(work: Workload) -> float:
    """Return how many runs of a block on the calibration text the compression needs, summed over blocks."""
    if not work.changed_layers:
        return 0.0
    whole = 1.0 + max(work.changed_layers)
    if work.options.compares_inputs:  # also the original, and each block up to each of its inputs
        return 2 * whole - min(work.changed_layers) + _AS_FAR * len(work.grams)
    return whole + (len(work.changed_layers) if work.options.sequential else 0)


def _journal(work: Workload, machine: Machine) -> float:
    """Return the seconds to record hidden states after each block: one write, two reads for checksum and digest."""
    row, tokens = 4.0 * work.hidden, work.tokens * (2 if work.options.compares_inputs else 1)
    written = row * work.layers * (work.probes + (work.tokens if work.calibrates_first else 0))
    if not work.knows_statistics and work.changed_layers:
        written += row * tokens * (1 + max(work.changed_layers))
    if work.options.needs.gradients:  # the input of each block, and its gradient
        written += 2 * row * work.layers * min(GRADIENT_TOKENS, work.tokens)
    if work.knows_statistics:
        written += 8.0 * sum(n**2 for n in work.grams)
    return written * (1 / machine.write + 2 / machine.digest)


def _way_back(work: Workload, machine: Machine) -> float:
    tokens = min(GRADIENT_TOKENS, work.tokens)
    found = _BACK * 2.0 * tokens * (work.whole / machine.block + work.head / machine.single)
    return found + tokens * work.vocabulary * (_SOFTMAX / 2 / machine.copy + 1 / machine.draw)


def _learning(work: Workload, machine: Machine) -> float:
    """Return the seconds of learning: forward passes of the original, both passes of its components."""
    tokens = work.options.method.learning_steps * BATCH * work.length
    linears = 2.0 * tokens * (work.whole + _BACK * work.components)
    return linears / machine.half + 2.0 * tokens * work.head * (1 + _BACK) / machine.half


def _writing(work: Workload, machine: Machine) -> float:
    """Return the seconds in which the model writes calibration text, one token of all sequences at a time."""
    found = _forward(work) * work.written_tokens / (_BATCHED * machine.block)
    found += work.cache * work.length / machine.copy  # each token moves the KV cache, which is half full on average
    return found + work.written_tokens * work.vocabulary / machine.draw


def factorizations(work: Workload, machine: Machine) -> float:
    """Return the seconds of all factorizations and roundings."""
    once = sum(_factorization(m, work, machine) for m in work.compressed)
    rounding = sum(_products(_rounding(m, work), machine) for m in work.changed)
    # To choose bits, every matrix is first rounded at every width.
    found = 2 * once + (len(BITS) + 1) * rounding if work.options.mixes_bits else once + rounding
    if work.options.compares_inputs:  # the teacher's target twice, and its error on held-out tokens
        shapes = (m.shape for m in work.compressed if work.tokens >= m.shape[1])
        found += sum(_products(14.0 * m * n**2 + n**3, machine) for m, n in shapes)
    return found


def _products(flops: float, machine: Machine) -> float:
    return flops / machine.double


def _eigen(sizes: Iterable[float], machine: Machine) -> float:
    return sum(size**3 for size in sizes) / machine.eigen


def _rounding(matrix: MatrixPlan, work: Workload) -> float:
    """Return the flops of quantizing a matrix: its errors, and for error feedback an inverse and a product."""
    (m, n), asked = matrix.shape, work.options.quantization
    if asked is None:
        return 0.0
    return 4.0 * m * n**2 + (m * n**2 + n**3 if asked.uses_statistics else 0.0)


def _factorization(matrix: MatrixPlan, work: Workload, machine: Machine) -> float:
    """Return the seconds to factorize one matrix, which includes measuring its error."""
    cost = work.options.method.cost(matrix, work.tokens)
    return _products(cost.flops, machine) + _eigen(cost.eigen, machine)


def _pricing(name: str, shape: tuple[int, int], machine: Machine) -> float:
    """Return the seconds in which `auto` measures the cost curve of a matrix; for down, of its MLP."""
    (m, n), tokens = shape, GRADIENT_TOKENS
    role = role_of(name)
    if role is Role.DOWN:  # an inverse, its updates as neurons are dropped, and the choice of a ridge
        return _products((4.0 * n**3 + 30.0 * m**2 * n) / LAPACK, machine) + 16.0 * tokens * m * n / machine.single
    if role in (Role.GATE, Role.UP):
        return 0.0
    flops = 2.0 * m * n**2 + 4.0 * m**2 * n + 6.0 * m**3
    return _products(flops, machine) + _eigen([m, m], machine) + 2.0 * tokens * m * (2 * m + n) / machine.single
