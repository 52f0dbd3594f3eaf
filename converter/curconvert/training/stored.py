"""Reads a compressed model from its artifact, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curconvert.blocks.stored import linear_of_artifact, stored_tensor
from curconvert.blocks.stream import Block
from curconvert.checkpoint.source_files import SourceFiles
from curconvert.checkpoint.types import Checkpoint, Companions, SourceKind, TensorInfo
from curconvert.families.skeleton import canonical_parameters, set_tensor
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.forms import form_of


class Stored(Checkpoint):
    """Presents an artifact as a checkpoint: tensors that it stores under the same name replace the original's.

    Linears that the artifact stores as factors remain the original's: `install` replaces them.

    Args:
        artifact: An artifact made from the original.
        original: Gives the names, and the tensors that the artifact lacks.
    """

    def __init__(self, artifact: Artifact, original: Checkpoint) -> None:
        self._artifact, self._original = artifact, original
        self.kind: SourceKind = original.kind
        self.path: Path = original.path
        self.files: SourceFiles = original.files
        self.config: Mapping[str, Any] = original.config
        self.tensors: Mapping[str, TensorInfo] = original.tensors

    def read(self, name: str) -> Tensor:
        """Return one tensor in its stored dtype."""
        if name in self._artifact.tensors:
            return stored_tensor(self._artifact, name)
        return self._original.read(name)

    def companions(self) -> Companions:
        """Return the original's companion files."""
        return self._original.companions()


def install(block: Block, artifact: Artifact) -> None:
    """Replace the weights of an original's block with those of an artifact, in float32."""
    for matrix in artifact.manifest["matrices"]:
        if matrix["name"] in block.linears and form_of(matrix["form"]).is_compressed:
            block.replace(matrix["name"], linear_of_artifact(artifact, matrix))
    for name, owner, attribute in list(canonical_parameters(block.layer, block.prefix)):
        if name in artifact.tensors:
            set_tensor(owner, attribute, stored_tensor(artifact, name).to(torch.float32, copy=True))
