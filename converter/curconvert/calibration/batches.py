"""Hidden states of the calibration sequences: in memory, or in a file where memory has no room for them."""

from __future__ import annotations

import math
import mmap
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from curconvert.journal.tensor_list import TensorList


class FileBatches(TensorList):
    """Batches mapped from a temporary file, of which one is resident: asking for another releases the one before.

    A batch is written in place; what it holds stays in the file. The file has no name, so nothing is left of it however
    the process ends.

    Args:
        batches: Contiguous tensors, copied one by one.
        folder: On the disk that takes the file.
    """

    def __init__(self, batches: Iterable[Tensor], folder: Path) -> None:
        self._parts: list[tuple[int, Tensor]] = []
        self._resident: int | None = None
        metas: list[tuple[int, torch.Size, torch.dtype]] = []
        with tempfile.TemporaryFile(dir=folder) as file:
            for batch in batches:
                metas.append((file.tell(), batch.shape, batch.dtype))
                file.write(batch.contiguous().numpy().tobytes())
                # A batch of its own pages, which can be released alone and are aligned as torch aligns.
                file.write(bytes(-file.tell() % mmap.ALLOCATIONGRANULARITY))
            file.flush()
            self._file = mmap.mmap(file.fileno(), 0) if metas else None
        for start, shape, dtype in metas:
            assert self._file is not None
            flat = torch.frombuffer(self._file, dtype=dtype, count=math.prod(shape), offset=start)
            self._parts.append((start, flat.reshape(shape)))

    def __len__(self) -> int:
        return len(self._parts)

    def at(self, index: int) -> Tensor:
        """Return one, and release the one before."""
        start, batch = self._parts[index]
        if self._resident != start:
            self._release()
            self._resident = start
        return batch

    def clear(self) -> None:
        """Give the batches up."""
        self._release()
        self._parts, self._file = [], None

    def _release(self) -> None:
        if self._file is not None and self._resident is not None and hasattr(mmap, "MADV_DONTNEED"):
            # Of a shared mapping: pages leave this process, and what was written to them stays with the file.
            start = self._resident
            size = next(part.nbytes for at, part in self._parts if at == start)
            self._file.madvise(mmap.MADV_DONTNEED, start, size)
        self._resident = None


Batches = list[Tensor] | FileBatches
"""Batches of (sequences, tokens, hidden_size) float32, each overwritten by what the next block makes of it."""


@dataclass(frozen=True)
class StateStore:
    """Where hidden states are kept.

    Attributes:
        folder: On the disk that takes them; None keeps them in memory.
    """

    folder: Path | None = None

    @property
    def on_disk(self) -> bool:
        """Whether they go to the disk."""
        return self.folder is not None

    def keep(self, batches: Iterable[Tensor]) -> Batches:
        """Keep batches, made one by one."""
        return list(batches) if self.folder is None else FileBatches(batches, self.folder)


IN_MEMORY = StateStore()
