"""Writes safetensors files one tensor at a time, so that a model need not fit in memory.

The safetensors library needs all tensors at once. But dtypes and shapes fix the layout of a file. So this writer
writes the header first, and then each tensor to its place, in any order.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from curconvert.base.errors import InputError
from curconvert.base.finite import all_finite, not_finite
from curconvert.base.layout import SAFETENSORS_DTYPES, TensorSpec, encoded_header, raw_bytes
from curconvert.checkpoint.types import ByteRange, TensorInfo

SHARD_BYTES = 5 * 10**9
_SHARD_TENSORS = 10_000  # whose header, with names of up to 200 characters, is within the readers' limit
_CHUNK = 4 * 2**20  # elements converted at a time, which limits the copy when the dtype changes


class SafetensorsWriter:
    """Creates one or more files from a list of tensors and writes the tensors in any order.

    Attributes:
        tensors: Location, dtype and shape of each tensor, by name.
        files: The files, in order.
    """

    def __init__(
        self, folder: Path, specs: Iterable[TensorSpec], stem: str = "model", shard_bytes: int = SHARD_BYTES
    ) -> None:
        """Create the files at full size, or open the files of an interrupted run.

        Args:
            folder: Folder for the file, or for the shards and their index.
            specs: Name, dtype and shape of every tensor, in any order.
            stem: File name without its ending.
            shard_bytes: Most bytes of tensors in one shard, unless a single tensor is larger.
        """
        # Wide dtypes first, as in the safetensors library: each tensor is then aligned to its element size.
        ordered = sorted(specs, key=lambda spec: (-spec.dtype.itemsize, spec.name))
        shards = _shards(ordered, shard_bytes)
        self.tensors: dict[str, TensorInfo] = {}
        self.files: list[Path] = []
        self._handles: dict[Path, int] = {}
        self._missing = {spec.name for spec in ordered}
        self._specs = {spec.name: spec for spec in ordered}
        for number, shard in enumerate(shards, 1):
            part = "" if len(shards) == 1 else f"-{number:05}-of-{len(shards):05}"
            self._create(folder / f"{stem}{part}.safetensors", shard)
        if len(shards) > 1:
            total = sum(spec.nbytes for spec in ordered)
            weight_map = {name: _file(info).name for name, info in sorted(self.tensors.items())}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")

    def _create(self, path: Path, specs: list[TensorSpec]) -> None:
        header = encoded_header(specs, {"format": "pt"})
        handle = os.open(path, os.O_CREAT | os.O_NOFOLLOW | os.O_RDWR, 0o666)
        self._handles[path] = handle
        self.files.append(path)
        _write_all(handle, header, 0)
        start = len(header)
        for spec in specs:
            location = ByteRange(path, start, spec.nbytes)
            self.tensors[spec.name] = TensorInfo(spec.name, SAFETENSORS_DTYPES[spec.dtype], spec.shape, location)
            start += spec.nbytes
        os.ftruncate(handle, start)

    def write(self, name: str, tensor: Tensor) -> None:
        """Convert one tensor to the dtype of its spec and write it, a few megabytes at a time.

        Raises:
            InputError: A value is not finite, in the source or after rounding to the deployed dtype.
        """
        location = self.tensors[name].location
        assert location is not None
        offset = location.offset
        for deployed in self._checked(name, tensor):
            data = raw_bytes(deployed)
            _write_all(self._handles[location.file], data, offset)
            offset += len(data)
        self._missing.discard(name)

    def copy(self, name: str, tensor: Tensor, source: TensorInfo) -> None:
        """Copy one tensor from another file. The kernel copies the bytes if the dtype stays the same.

        Args:
            name: Name of the tensor.
            tensor: Its values, mapped from the other file. They are checked, and written if the dtype changes.
            source: Location of the values in the other file.

        Raises:
            InputError: As in `write`.
        """
        found, location = source.location, self.tensors[name].location
        assert location is not None
        if found is None or tensor.dtype != self._specs[name].dtype or not hasattr(os, "copy_file_range"):
            self.write(name, tensor)
            return
        for _ in self._checked(name, tensor):
            pass
        with found.file.open("rb") as file:
            copied = _copy_all(file.fileno(), self._handles[location.file], found.offset, location)
        if copied:
            self._missing.discard(name)
        else:
            self.write(name, tensor)

    def _checked(self, name: str, tensor: Tensor) -> Iterator[Tensor]:
        """Yield a tensor's values in the dtype of its spec, a few megabytes at a time; raise if one is not finite."""
        spec = self._specs[name]
        if tuple(tensor.shape) != spec.shape:
            raise ValueError(f"{name}: shape {tuple(tensor.shape)}, announced {spec.shape}")
        for part in torch.split(tensor.contiguous().reshape(-1), _CHUNK):
            deployed = part.to(spec.dtype)
            if not all_finite(deployed):
                raise InputError(not_finite(name, part, spec.dtype))
            yield deployed

    @property
    def written(self) -> list[str]:
        """Names of the tensors that are written."""
        return sorted(self._specs.keys() - self._missing)

    def resume(self, written: Iterable[str]) -> None:
        """Mark tensors as written, because an interrupted run wrote them into these files."""
        self._missing.difference_update(written)

    def flush(self) -> None:
        """Flush the files to the disk."""
        for handle in self._handles.values():
            os.fsync(handle)

    def finish(self) -> None:
        """Check that every tensor is written, and flush the files to the disk.

        Raises:
            ValueError: A tensor was never written.
        """
        if self._missing:
            raise ValueError(f"never written: {', '.join(sorted(self._missing)[:5])}")
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a small safetensors file with deterministic bytes."""
    specs = [TensorSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    with SafetensorsWriter(path.parent, specs, path.stem) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
        writer.finish()


def _shards(specs: list[TensorSpec], limit: int) -> list[list[TensorSpec]]:
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if shards[-1] and (size + spec.nbytes > limit or len(shards[-1]) == _SHARD_TENSORS):
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.nbytes
    return shards


def _file(info: TensorInfo) -> Path:
    assert info.location is not None
    return info.location.file


def _copy_all(source: int, target: int, offset: int, location: ByteRange) -> bool:
    """Copy bytes inside the kernel and return whether that worked.

    On some file systems the copy shares the disk blocks. Other file systems do not support the call, and older kernels
    do not copy between file systems. The caller then writes the bytes itself.
    """
    done = 0
    while done < location.length:
        try:
            count = os.copy_file_range(
                source, target, location.length - done, offset + done, location.offset + done
            )  # fmt: skip
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
                return False
            raise
        if count == 0:  # the source file is shorter than before
            return False
        done += count
    return True


def _write_all(handle: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written
