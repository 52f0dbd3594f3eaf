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
    """A checked artifact folder.

    Attributes:
        path: Absolute path of the folder.
        manifest: Contents of `curconvert.json`.
        tensors: Header of every stored weight tensor, by name.
    """

    path: Path
    manifest: Mapping[str, Any]
    tensors: Mapping[str, TensorHeader] = field(repr=False)

    @classmethod
    def open(cls, path: str | Path, *, full: bool = False) -> Artifact:
        """Check a folder and return it.

        Args:
            path: Folder that `curconvert convert` or `curconvert export` wrote.
            full: Hash every file and make every check now, even if the same bytes passed before.

        Raises:
            InputError: There is no such folder.
            UnsupportedError: A newer version of curconvert wrote it.
            IntegrityError: Anything about the contents differs from the manifest; one line names file and remedy.
        """
        return cls(*read_checked(path, full))

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """Hugging Face `config.json`."""
        return strict_json.read(self.file(CONFIG))

    @property
    def model(self) -> Mapping[str, Any]:
        """The manifest's description of the model: dtype, vocabulary, layers, heads, context."""
        model: Mapping[str, Any] = self.manifest["model"]
        return model

    @property
    def graphs(self) -> Mapping[str, Path]:
        """Paths of the folder's graph files, by kind: `portable`, `fused`."""
        return {kind: self.path / entry["file"] for kind, entry in self.manifest["graphs"].items()}

    def has(self, name: str) -> bool:
        """Tell whether the manifest lists a file of this name."""
        return name in self.manifest["files"]

    def file(self, name: str) -> Path:
        """Return the path of a listed file."""
        if not self.has(name):
            raise unsound(self.path / name, "the artifact has no such file")
        return self.path / name

    def arithmetic(self, kind: str) -> str:
        """Return the dtype of a graph's arithmetic and cache: `float32`, or `float16` if it was made for a GPU."""
        return str(self.manifest["graphs"][kind].get("arithmetic", "float32"))

    @cached_property
    def quantized(self) -> Mapping[str, Packing]:
        """Shape and layout of each quantized matrix, by the name that it would have unquantized."""
        return packings(self.manifest)

    def tensor(self, name: str) -> NDArray[Any]:
        """Return a stored tensor, memory-mapped read-only (bfloat16: a float32 copy)."""
        if name not in self.tensors:
            raise InputError(f"{self.path}: no tensor is called {name[:200]!r}")
        return read_tensor(self.tensors[name])
