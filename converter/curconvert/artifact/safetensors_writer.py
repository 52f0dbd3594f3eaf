"""Write safetensors files tensor by tensor, so that no model has to fit in memory.

The format's own library wants every tensor at once; its layout is fixed by the shapes, so the header can go first
and each tensor to its place when it is ready.
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
_CHUNK = 4 * 2**20  # elements converted at a time: bounds the copy when the dtype changes


class SafetensorsWriter:
    """Lays tensors out in one or more files and fills them in any order.

    Attributes:
        tensors: Where each tensor's bytes lie, by name.
        files: The files, in order.
    """

    def __init__(
        self, folder: Path, specs: Iterable[TensorSpec], stem: str = "model", shard_bytes: int = SHARD_BYTES
    ) -> None:
        """Create the files at full size, or open those that an interrupted run has created.

        Args:
            folder: Where the file (or the shards and their index) go.
            specs: Every tensor; order does not matter.
            stem: File name without its ending.
            shard_bytes: Data bytes after which a new shard begins.
        """
        # Large elements first keeps every tensor aligned to its element, as the safetensors library does.
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
        """Write one tensor in its announced dtype, a few megabytes at a time.

        Raises:
            InputError: A value is not finite, in the source or once it is rounded to the deployed dtype.
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
        """Write one tensor from another file, from file to file where its dtype stays.

        Args:
            name: Its name.
            tensor: Its values, mapped from the file: they are checked, and written where the dtype changes.
            source: Where they lie.

        Raises:
            InputError: As `write`.
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
        """Yield a tensor's values in their announced dtype, a few megabytes at a time."""
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
        """Names of the tensors that are in their places."""
        return sorted(self._specs.keys() - self._missing)

    def resume(self, written: Iterable[str]) -> None:
        """Take tensors as written: by an interrupted run, whose files these are."""
        self._missing.difference_update(written)

    def flush(self) -> None:
        """Bring what is written to the disk."""
        for handle in self._handles.values():
            os.fsync(handle)

    def finish(self) -> None:
        """Flush to disk.

        Raises:
            ValueError: A tensor was announced and never written.
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
        if shards[-1] and size + spec.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.nbytes
    return shards


def _file(info: TensorInfo) -> Path:
    assert info.location is not None
    return info.location.file


def _copy_all(source: int, target: int, offset: int, location: ByteRange) -> bool:
    """Copy bytes inside the kernel, which shares blocks where the file system can; False where it cannot copy at all.

    Some file systems, and copies across two of them on older kernels, are refused; the caller then writes.
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
        if count == 0:  # the source has become shorter
            return False
        done += count
    return True


def _write_all(handle: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written
