"""Measures this machine's speed at the operations of a conversion, in a second or two."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from curconvert.base.errors import InputError
from curconvert.base.names import layer_of
from curconvert.blocks.precision import multiplies_bfloat16
from curconvert.blocks.stream import BlockStream
from curconvert.calibration.original import BATCH
from curconvert.checkpoint.linears import decoder_linears
from curconvert.checkpoint.source_files import SourceFiles
from curconvert.checkpoint.types import Checkpoint, Companions, TensorInfo
from curconvert.execution.threads import one_blas_thread
from curconvert.families.skeleton import EMBEDDING

_SIZE = 1024  # of the measured products
_EIGEN_SIZE = 512  # of the measured eigenproblems
_DISK_BYTES = 64 * 2**20
_SECONDS = 0.15  # for each rate
_BLOCK_NUMBERS = 2.5e8  # parameters of the largest block built for measuring, 1 GB
_BLOCK_FLOPS = 5e10  # most flops of a measured run of a block, unless a single sequence needs more
_COPIED = 2**22  # float64 numbers, far more than a core's cache holds
_DRAWN = 2**17  # probabilities
_LOADED = 2**22  # numbers of the largest matrix to read, unless all are larger
_VALUE = 0.01


@dataclass(frozen=True)
class Machine:
    """Holds the rates of this machine.

    Attributes:
        single: float32 products with all of torch's threads, flops/s.
        block: Flops of the linears over the time of a whole decoder block of the model in float32, flops/s.
        half: The same with bfloat16 products; equal to `block` if the CPU has none.
        double: Single-threaded float64 products, `workers` at once; all together, flops/s.
        eigen: Symmetric eigenproblems in float64, `workers` at once, n³/s.
        load: Weights read and converted to float32, numbers/s.
        copy: Bytes/s, read and written to new memory by one thread.
        draw: Probabilities/s from which a token is drawn.
        digest: sha256, bytes/s.
        write: Durable writes to disk, bytes/s.
        workers: Number of matrices factorized at the same time.
    """

    single: float
    block: float
    half: float
    double: float
    eigen: float
    load: float
    copy: float
    draw: float
    digest: float
    write: float
    workers: int


def measure_machine(checkpoint: Checkpoint, length: int, folder: Path, workers: int) -> Machine:
    """Measure the rates for a second or two, and read one matrix of the model.

    Args:
        checkpoint: The opened model.
        length: Tokens of a calibration sequence.
        folder: A folder on the disk that takes the output.
        workers: Number of matrices factorized at the same time.

    Raises:
        InputError: The folder cannot be written to.
    """
    write = _write_rate(folder)
    generator = np.random.default_rng(0)
    wide = generator.standard_normal((_SIZE, _SIZE))
    a = torch.from_numpy(wide).float()
    flops = 2.0 * _SIZE**3
    single = flops * _rate(lambda: a @ a)
    gram = wide[:_EIGEN_SIZE] @ wide[:_EIGEN_SIZE].T
    with one_blas_thread():
        double = flops * _rate(lambda: wide @ wide, workers)
        eigen = float(_EIGEN_SIZE**3) * _rate(lambda: scipy.linalg.eigh(gram, driver="evd"), workers)
    block, half = _block_rates(checkpoint, length) or (single, _half_rate(a, single))
    data, large, odds = wide.tobytes(), np.ones(_COPIED), torch.ones(_DRAWN)
    return Machine(
        single, block, half, double, eigen,
        load=_load_rate(checkpoint),
        copy=2 * large.nbytes * _rate(lambda: large * 2.0),
        draw=odds.numel() * _rate(lambda: torch.multinomial(odds, 1)),
        digest=len(data) * _rate(lambda: hashlib.sha256(data).digest()),
        write=write,
        workers=workers,
    )  # fmt: skip


def _rate(work: Callable[[], object], threads: int = 1) -> float:
    """Return the calls per second of a function, by all threads together."""

    def until(deadline: float) -> int:
        count = 0
        while time.perf_counter() < deadline:
            work()
            count += 1
        return count

    work()  # the first call creates threads and buffers
    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        counts = list(pool.map(until, [start + _SECONDS] * threads))
        return sum(counts) / (time.perf_counter() - start)


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


def _load_rate(checkpoint: Checkpoint) -> float:
    """Return the numbers per second when reading a matrix; a quantized file also has to dequantize them."""
    sizes = {name: m * n for name, (m, n) in decoder_linears(checkpoint).items()}
    name = max(sizes, key=lambda name: sizes[name] if sizes[name] <= _LOADED else 1 / sizes[name])
    return sizes[name] * _rate(lambda: checkpoint.read(name).to(torch.float32, copy=True))


def _half_rate(a: Tensor, single: float) -> float:
    if not multiplies_bfloat16():
        return single
    half = a.bfloat16()
    return 2.0 * _SIZE**3 * _rate(lambda: half @ half)


def _block_rates(checkpoint: Checkpoint, length: int) -> tuple[float, float] | None:
    """Return the flops/s of a block of the model's shape, in float32 and with bfloat16 products; None if too large."""
    numbers = sum(m * n for name, (m, n) in decoder_linears(checkpoint).items() if layer_of(name) == 0)
    if numbers > _BLOCK_NUMBERS:
        return None
    batch = min(BATCH, max(1, int(_BLOCK_FLOPS / (2 * numbers * length))))
    stream = BlockStream(_Blank(checkpoint))
    hidden = stream.embed(torch.arange(batch * length).reshape(batch, length) % 7)
    flops = 2.0 * numbers * batch * length
    with stream.block(0) as block:
        single = flops * _rate(lambda: block.forward(hidden))
        if not multiplies_bfloat16():
            return single, single
        return single, flops * _rate(lambda: block.forward(hidden, dtype=torch.bfloat16))


class _Blank(Checkpoint):
    """Presents a checkpoint with the same shapes and constant weights, without reading files."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.kind, self.path, self.config = checkpoint.kind, checkpoint.path, checkpoint.config
        self.files = SourceFiles()
        self.tensors: Mapping[str, TensorInfo] = {
            name: replace(info, location=None) for name, info in checkpoint.tensors.items()
        }

    def read(self, name: str) -> Tensor:
        """Return a tensor; the embedding takes no memory."""
        shape = self.tensors[name].shape
        return torch.full((1, 1), _VALUE).expand(shape) if name == EMBEDDING else torch.full(shape, _VALUE)

    def companions(self) -> Companions:
        """Return no companion files."""
        return Companions()
