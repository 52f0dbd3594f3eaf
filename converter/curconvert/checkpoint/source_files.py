"""Remembers the files of a checkpoint as they were when it was opened, and refuses those that change afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, overload

from curconvert.base.errors import InputError
from curconvert_runtime.format.hashing import cached_sha256

_Identity = tuple[int, int, int, int]


class SourceFiles(Sequence[Path]):
    """Every file that holds weights, in a fixed order.

    A replaced file has another inode; a changed one has another size or modification time. What is read from the file
    that was opened is therefore what its hash describes.

    Args:
        paths: The files. Each one must exist.
    """

    def __init__(self, paths: Iterable[Path] = ()) -> None:
        self._opened = {path: _identity(path.stat()) for path in paths}
        self._paths = tuple(self._opened)
        self._sha256: dict[Path, str] = {}

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Path, ...]: ...
    def __getitem__(self, index: int | slice) -> Path | tuple[Path, ...]:
        """Return the path of a file."""
        return self._paths[index]

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self._paths)

    @contextmanager
    def open(self, path: Path) -> Iterator[BinaryIO]:
        """Open one of the files for reading.

        Raises:
            InputError: It is not the file that it was when the checkpoint was opened.
        """
        try:
            file = path.open("rb")
        except FileNotFoundError:
            raise _changed(path) from None
        with file:
            self._compare(path, os.fstat(file.fileno()))
            yield file

    def check(self) -> None:
        """Raise `InputError` if a file is not the one that it was when the checkpoint was opened."""
        for path in self._paths:
            try:
                status = path.stat()
            except OSError:
                raise _changed(path) from None
            self._compare(path, status)

    def hashes(self) -> list[dict[str, Any]]:
        """Return name, size and sha256 of each file.

        Raises:
            InputError: A file changed since the checkpoint was opened, or has another sha256 than at the last call.
        """
        self.check()
        found = {path: cached_sha256(path.resolve()) for path in self._paths}
        self.check()
        for path, digest in found.items():
            if self._sha256.setdefault(path, digest) != digest:
                raise _changed(path)
        return [{"name": path.name, "size": self._opened[path][2], "sha256": digest} for path, digest in found.items()]

    def _compare(self, path: Path, status: os.stat_result) -> None:
        if _identity(status) != self._opened[path]:
            raise _changed(path)


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _changed(path: Path) -> InputError:
    return InputError(f"{path}: another program changed or replaced it while it was read; run the command again")
