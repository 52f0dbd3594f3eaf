"""What a conversion will take on this machine: time, memory and disk, from shapes and a second of measuring."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from curconvert.allocation.backward import GRADIENT_TOKENS
from curconvert.allocation.plans import targets_of
from curconvert.artifact.space import needed_bytes
from curconvert.blocks.precision import multiplies_bfloat16
from curconvert.blocks.skeleton import EMBEDDING
from curconvert.calibration.batches import FileBatches, Keeping
from curconvert.calibration.sampled import RESIDENT_BYTES
from curconvert.checkpoint.types import Checkpoint
from curconvert.chunked import CHUNK
from curconvert.errors import InputError
from curconvert.execution.executor import ExecutionOptions
from curconvert.options import ConvertOptions
from curconvert.original_pass import BATCH
from curconvert.planning import MatrixPlan, Plan, distinct_inputs, keeps_inputs, layer_of
from curconvert.selection.bases import krylov_size
from curconvert.selection.indices import EXACT_OUTPUTS
from curconvert.selection.layers import score_of
from curconvert_runtime.probes import PARITY_LENGTHS

_TORCH_BYTES = 450e6  # torch, transformers and the interpreter themselves, measured on Linux x86-64
_SIZE = 1024  # of the measured products
_DISK_BYTES = 64 * 2**20
_HASH_RATE = 1.2e9  # bytes a second through sha256 and the page cache
_EIGH = 9 / 0.3  # flops of a symmetric eigenproblem over n³, and the share of a product's speed that LAPACK reaches


@dataclass(frozen=True)
class Machine:
    """Rates of this machine.

    Attributes:
        single: float32 products with all of torch's threads, flops/s.
        half: bfloat16 products likewise; `single` where the CPU has none.
        double: float64 products of one thread, flops/s.
        write: Bytes/s to the disk, until they are there.
        workers: Matrices that are factorized at the same time.
    """

    single: float
    half: float
    double: float
    write: float
    workers: int


@dataclass(frozen=True)
class Estimate:
    """What a conversion takes, without the verification.

    Attributes:
        seconds: Wall time.
        peak_memory_bytes: Most resident memory.
        temporary_bytes: Room on the disk beside the output, the output included.
        output_bytes: Weights of the artifact.
    """

    seconds: float
    peak_memory_bytes: int
    temporary_bytes: int
    output_bytes: int


def keeping_within(
    checkpoint: Checkpoint, plan: Plan, options: ConvertOptions, execution: ExecutionOptions, folder: Path
) -> Keeping:
    """Decide where hidden states are kept: in memory, or on the disk where the limit leaves no room for them.

    Args:
        checkpoint: The opened model.
        plan: What shapes alone can tell.
        options: Method, numerics and calibration.
        execution: The limit, and how many matrices are worked on at once.
        folder: On the disk that would take them.

    Raises:
        InputError: More memory is needed even so.
    """
    limit, work = execution.memory_limit, _Work(checkpoint, plan, options)
    if limit is None or work.memory(execution.tasks_at_once) <= limit:
        return list
    needed = work.memory(execution.tasks_at_once, spilled=True)
    if needed > limit:
        least = work.memory(1, spilled=True)
        fewer = "--workers 1 or " if least <= limit else ""
        raise InputError(
            f"--memory-limit: {limit / 1e9:.2f} GB, but about {needed / 1e9:.2f} GB are needed with all hidden states "
            f"on the disk; allow more, or take {fewer}less calibration text"
        )
    return lambda batches: FileBatches(batches, folder)


def measure_machine(folder: Path, workers: int) -> Machine:
    """Measure for about a second.

    Args:
        folder: On the disk that will be written to.
        workers: Passed on.

    Raises:
        InputError: The folder cannot be written to.
    """
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(_SIZE, _SIZE, generator=generator) for _ in range(2))
    single = _rate(lambda: a @ b)
    half = _rate(lambda: a.bfloat16() @ b.bfloat16()) if multiplies_bfloat16() else single
    wide = a.double().numpy(), b.double().numpy()
    with threadpool_limits(1, user_api="blas"):
        double = _rate(lambda: wide[0] @ wide[1])
    return Machine(single, half, double, _write_rate(folder), workers)


def _write_rate(folder: Path) -> float:
    data = np.random.default_rng(0).bytes(_DISK_BYTES)
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            start = time.perf_counter()
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            return _DISK_BYTES / (time.perf_counter() - start)
    except OSError as error:
        raise InputError(
            f"{folder}: the disk cannot be measured ({error.strerror}); name a writable folder with --output"
        ) from None


def _rate(product: Callable[[], object], seconds: float = 0.25) -> float:
    product()  # the first call makes threads and buffers
    start, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds:
        product()
        count += 1
    return count * 2 * _SIZE**3 / spent


def estimate(
    checkpoint: Checkpoint, plan: Plan, options: ConvertOptions, itemsize: float, machine: Machine
) -> Estimate:
    """Estimate from shapes.

    Args:
        checkpoint: The opened model.
        plan: What shapes alone can tell.
        options: Method, numerics and calibration.
        itemsize: Bytes of a deployed number.
        machine: Its rates.
    """
    output = int(plan.parameters_after * itemsize)
    disk = needed_bytes(checkpoint, plan, options, itemsize, targets_of(checkpoint, options))
    work = _Work(checkpoint, plan, options)
    seconds = work.passes(machine) + work.factorizations() / (_LAPACK * machine.double * machine.workers)
    source = sum(file.stat().st_size for file in checkpoint.files)
    seconds += (source + output) / _HASH_RATE + disk / machine.write
    return Estimate(seconds, int(work.memory(machine.workers)), disk, output)


class _Work:
    """Counts flops and bytes."""

    def __init__(self, checkpoint: Checkpoint, plan: Plan, options: ConvertOptions) -> None:
        self._plan, self._options = plan, options
        self._hidden = int(checkpoint.config["hidden_size"])
        self._vocab = checkpoint.tensors[EMBEDDING].shape[0]
        self._whole = sum(m.parameters_before for m in plan.matrices)
        self._block = sum(m.parameters_before for m in plan.matrices if layer_of(m.name) == 0)
        self._compressed = [m for m in plan.matrices if m.form != "dense"]
        self._changed = list(plan.matrices) if options.quantization else self._compressed
        self._layers = {layer_of(m.name) for m in self._changed}
        self._sixteen_bits = checkpoint.tensors[EMBEDDING].dtype != "F32"
        text = options.calibration
        self._length = text.tokens_per_sequence
        self._tokens, self._probes = text.sequences * self._length, text.probe_sequences * self._length
        self._sequences = text.sequences + text.probe_sequences
        self._known = keeps_inputs(checkpoint, options)
        total = 4 * sum(math.prod(info.shape) for info in checkpoint.tensors.values())
        self._resident = total if options.self_text and total <= RESIDENT_BYTES else 0
        heads = int(checkpoint.config.get("num_key_value_heads") or checkpoint.config["num_attention_heads"])
        size = int(checkpoint.config.get("head_dim") or self._hidden // int(checkpoint.config["num_attention_heads"]))
        layers = int(checkpoint.config["num_hidden_layers"])
        self._cache = 2 * 4 * heads * size * layers * self._length * options.self_text * self._sequences

    def passes(self, machine: Machine) -> float:
        """Seconds of everything that runs the model."""
        products = machine.half if self._sixteen_bits and self._options.form != "auto" else machine.single
        alone = sum(min(length, self._length) for length in PARITY_LENGTHS) / _ALONE
        flops = 2.0 * (self._whole + self._vocab * self._hidden) * (self._probes + alone)
        calibration = 2.0 * self._whole * self._tokens
        auto, scored = self._options.form == "auto", score_of(self._options.layers) is not None
        count = 0.0 if auto else float(scored)
        if not auto and not self._known:
            count += self._block_runs() / (1 + max(layer_of(m.name) for m in self._plan.matrices))
        asked = self._options.quantization
        if asked is not None and asked.uses_statistics and not auto and not scored:
            count += 1  # the original's last block gives what the head meets
        seconds = flops / machine.single + count * calibration / products
        seconds += 2 * self._whole * (4 + (2 if self._sixteen_bits else 4)) / _COPY_RATE  # weights, read and widened
        grams = sum(2.0 * self._tokens * n**2 for n in self._grams()) * (2 if self._options.mixes_targets else 1)
        seconds += grams / (machine.single if auto else machine.double * machine.workers)
        if auto:  # the text that the model writes, the way forwards and the way back
            written = 2.0 * (self._whole + self._vocab * self._hidden) * self._options.self_text
            written *= self._sequences * self._length / _SAMPLING if self._resident else 0
            seconds += (calibration + self._back() + written) / machine.single
        elif self._options.mixes_widths:
            seconds += (calibration + self._back()) / machine.single
        return seconds

    def _back(self) -> float:
        """Flops of the way back through the model."""
        return 3 * 2.0 * self._whole * min(GRADIENT_TOKENS, self._tokens)

    def _block_runs(self) -> float:
        """How often blocks are run on the calibration text while the model is compressed, all of them together."""
        whole = 1.0 + max(self._layers)
        if self._options.mixes_targets:  # the original too, and a compressed block as far as each of its inputs
            inputs = distinct_inputs({m.name: m.shape for m in self._changed})
            return 2 * whole - min(self._layers) + _AS_FAR * len(inputs)
        return whole + (len(self._layers) if self._options.sequential else 0)

    def _grams(self) -> list[int]:
        """Widths of the inputs whose Gram matrix is formed."""
        widths = distinct_inputs({m.name: m.shape for m in self._changed}).values()
        return [width for width in widths if self._tokens >= width]

    def factorizations(self) -> float:
        """Flops of all factorizations, as if they were products in float64."""
        once, rounding = sum(map(self._factorization, self._compressed)), sum(map(self._rounding, self._changed))
        # To choose widths, everything is rounded at both of them beforehand.
        found = 2 * once + 3 * rounding if self._options.mixes_widths else once + rounding
        if self._options.mixes_targets:  # the teacher's target twice, and its error on what is held out
            shapes = [m.shape for m in self._compressed if self._tokens >= m.shape[1]]
            found += sum(14.0 * m * n**2 + n**3 for m, n in shapes)
        return found

    def _rounding(self, matrix: MatrixPlan) -> float:
        """Flops of quantising: the errors, and with feedback the inverse and a triangular product."""
        (m, n), asked = matrix.shape, self._options.quantization
        if asked is None:
            return 0.0
        return 4.0 * m * n**2 + (m * n**2 + n**3 if asked.uses_statistics else 0.0)

    def _factorization(self, matrix: MatrixPlan) -> float:
        (m, n), rank = matrix.shape, matrix.rank or 0
        short = min(m, n)
        sampled = self._tokens < n
        # The error: of the weight's outputs, in float32 from the inputs themselves, or twice through the Gram matrix.
        flops = m * n * self._tokens if sampled else 4.0 * m * n**2
        if self._options.form == "cur":
            flops += 2.0 * m * n * 2 * rank  # the link and the product
            if self._options.selector == "qr":
                return flops + 2.0 * m * n * 2 * rank + (2.0 * m * n * (m + n) if m <= EXACT_OUTPUTS else 0.0)
            size = krylov_size(matrix.shape, rank)  # twice as many products, but in float32
            return flops + (2.0 * m * n * size if size else 2.0 * m * n * short + _EIGH * short**3)
        if self._options.form == "auto":
            return flops + 2.0 * m * n * (m + n) + _EIGH * (m**3 + n**3) / 2
        return flops + 4.0 * m * n * short + _EIGH * (short**3 + (n**3 if m > n else 0))

    def memory(self, workers: int, *, spilled: bool = False) -> float:
        """Bytes that are resident at the peak: while blocks are compressed, or while the model writes text.

        Args:
            workers: Matrices that are worked on at once.
            spilled: The calibration tokens' hidden states are on the disk, but for one batch.
        """
        widest = max(max(m.shape) for m in self._plan.matrices)
        kept = min(BATCH * self._length, self._tokens) if spilled else self._tokens
        states = 4.0 * (kept + self._probes) * self._hidden
        forward = 4 * 4 * BATCH * self._length * widest
        largest = sorted((self._held(m) for m in self._changed), reverse=True)[:workers]
        grams = sum(8 * n**2 for n in set(self._grams()))
        if self._options.mixes_targets:  # one input at a time, with its drift and a part held out
            states += 4 * (kept * self._hidden + self._tokens * sum(self._grams()) // len(self._layers))
            grams = 4 * 8 * max(self._grams(), default=0) ** 2
        inputs = sum(4 * self._tokens * n for n in {m.shape[1] for m in self._changed if self._tokens < m.shape[1]})
        # A block's weights are mapped as they are stored, too, and checked before the first is factorized.
        mapped = (2 if self._sixteen_bits else 4) * sum(m.parameters_before for m in self._changed) / len(self._layers)
        compressing = 4 * self._block + mapped + states + max(forward, _ARENAS * sum(largest)) + grams + inputs
        return _TORCH_BYTES + max(compressing, self._resident + self._cache)

    def _held(self, matrix: MatrixPlan) -> float:
        """Bytes that one factorization holds: thin factors, or float64 copies where the method needs the whole."""
        m, n = matrix.shape
        rank = matrix.rank or 0
        if self._options.form == "cur" and self._options.selector == "qr":
            return 8.0 * 4 * (m + n) * rank + 2 * 8 * CHUNK
        if self._options.form == "cur" and (size := krylov_size(matrix.shape, rank)):
            return 8.0 * (m + n) * size + 4.0 * m * n + 2 * 8 * CHUNK
        return 8.0 * (4 * m * n + 2 * min(m, n) ** 2)


_ARENAS = 1.3  # what threads' allocators hold, over what is in use
_ALONE = 0.4  # share of the speed of large products that one short sequence reaches
_LAPACK = 0.5  # and that factorizations reach, between their products
_AS_FAR = 0.5  # share of a block that comes before one of its inputs, on average
_COPY_RATE = 2.5e9  # bytes a second, read and written
_SAMPLING = 0.5  # share of the speed of large products that one token of many sequences reaches
