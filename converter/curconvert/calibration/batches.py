"""Storage for the hidden states of the calibration sequences: in memory, or in a file when they do not fit."""

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
    """Maps batches from a temporary file and keeps one in memory: reading another batch releases the previous one.

    You change a batch in place, and the file holds the change. The file has no name, so it vanishes however the process
    ends.

    Args:
        batches: Contiguous tensors, copied one by one.
        folder: A folder on the disk that takes the file.
    """

    def __init__(self, batches: Iterable[Tensor], folder: Path) -> None:
        self._parts: list[tuple[int, Tensor]] = []
        self._resident: int | None = None
        metas: list[tuple[int, torch.Size, torch.dtype]] = []
        with tempfile.TemporaryFile(dir=folder) as file:
            for batch in batches:
                metas.append((file.tell(), batch.shape, batch.dtype))
                file.write(batch.contiguous().numpy().tobytes())
                # Each batch starts on its own page: it can be released alone, and it has torch's alignment.
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
        """Return a batch, and release the previous one."""
        start, batch = self._parts[index]
        if self._resident != start:
            self._release()
            self._resident = start
        return batch

    def clear(self) -> None:
        """Release all batches."""
        self._release()
        self._parts, self._file = [], None

    def _release(self) -> None:
        if self._file is not None and self._resident is not None and hasattr(mmap, "MADV_DONTNEED"):
            # The mapping is shared: the pages leave this process, and the file keeps what was written to them.
            start = self._resident
            size = next(part.nbytes for at, part in self._parts if at == start)
            self._file.madvise(mmap.MADV_DONTNEED, start, size)
        self._resident = None


Batches = list[Tensor] | FileBatches
"""Batches of (sequences, tokens, hidden_size) float32; each block overwrites them with its output."""


@dataclass(frozen=True)
class StateStore:
    """Says where hidden states are kept.

    Attributes:
        folder: A folder on the disk that takes them; None keeps them in memory.
    """

    folder: Path | None = None

    @property
    def on_disk(self) -> bool:
        """Whether hidden states go to disk."""
        return self.folder is not None

    def keep(self, batches: Iterable[Tensor]) -> Batches:
        """Store batches as they are produced, one by one, and return them."""
        return list(batches) if self.folder is None else FileBatches(batches, self.folder)


IN_MEMORY = StateStore()
