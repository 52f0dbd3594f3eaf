"""Opens an artifact's folder. No file is used before all bytes are checked against the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from curconvert_runtime.errors import InputError, unsound
from curconvert_runtime.format import strict_json
from curconvert_runtime.format.files import CONFIG
from curconvert_runtime.format.integrity import read_checked
from curconvert_runtime.format.quantized import Packing, packings
from curconvert_runtime.format.tensor_file import TensorHeader, read_tensor


@dataclass(frozen=True)
class Artifact:
    """An artifact whose files are checked. Make it with `Artifact.open`.

    Attributes:
        path: Absolute path of the folder.
        manifest: Contents of `curconvert.json`; `files` without those for people, which older artifacts list.
        tensors: Header of each stored weight tensor, by name.
    """

    path: Path
    manifest: Mapping[str, Any]
    tensors: Mapping[str, TensorHeader] = field(repr=False)

    @classmethod
    def open(cls, path: str | Path, *, full: bool = False) -> Artifact:
        """Check a folder and open it.

        Args:
            path: An artifact folder.
            full: Run every check and hash every file, even if the same bytes passed before.

        Raises:
            InputError: There is no such folder.
            UnsupportedError: A newer version of curconvert wrote it.
            IntegrityError: The contents differ from the manifest. The message names the file and what to do.
        """
        return cls(*read_checked(path, full))

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The Hugging Face config, `config.json`."""
        return strict_json.read(self.file(CONFIG))

    @property
    def model(self) -> Mapping[str, Any]:
        """The model as the manifest describes it: dtype, vocabulary, layers, heads and context."""
        model: Mapping[str, Any] = self.manifest["model"]
        return model

    @property
    def graphs(self) -> Mapping[str, Path]:
        """Path of each graph by kind, `portable` or `fused`."""
        return {kind: self.path / entry["file"] for kind, entry in self.manifest["graphs"].items()}

    def has(self, name: str) -> bool:
        """Return whether the manifest lists a file of this name."""
        return name in self.manifest["files"]

    def file(self, name: str) -> Path:
        """Return the path of a file that the manifest lists."""
        if not self.has(name):
            raise unsound(self.path / name, "the artifact has no such file")
        return self.path / name

    def arithmetic(self, kind: str) -> str:
        """Return the dtype of a graph's arithmetic and cache: `float32`, or `float16` if made for a GPU."""
        return str(self.manifest["graphs"][kind].get("arithmetic", "float32"))

    @cached_property
    def quantized(self) -> Mapping[str, Packing]:
        """Layout of each quantized matrix, by the name of its weight."""
        return packings(self.manifest)

    def tensor(self, name: str) -> NDArray[Any]:
        """Return a stored tensor: memory-mapped and read-only, or a float32 copy of bfloat16."""
        if name not in self.tensors:
            raise InputError(f"{self.path}: no tensor is called {name[:200]!r}")
        return read_tensor(self.tensors[name])
