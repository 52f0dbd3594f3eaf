"""Reads an artifact as the checkpoint from which a smaller one is made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from curconvert.allocation.plans import assemble
from curconvert.base.names import bias_of
from curconvert.base.plan import MatrixPlan, Plan
from curconvert.base.types import Matrix
from curconvert.blocks.stored import factor_names, stored_tensor
from curconvert.checkpoint.companions import artifact_companions
from curconvert.checkpoint.finished import Stated, finished
from curconvert.checkpoint.source_files import SourceFiles
from curconvert.checkpoint.types import ByteRange, Checkpoint, Companions, SourceKind, TensorInfo
from curconvert.factorization.types import arrays
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.forms import form_of
from curconvert_runtime.format.tensor_file import STORED_DTYPE

Row = Mapping[str, Any]


class ArtifactSource(Checkpoint):
    """Presents an artifact as a checkpoint: the original's names and shapes, with the artifact's values.

    Args:
        artifact: An artifact that is not quantized.

    Attributes:
        rows: The manifest's rows by weight name.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self.rows: Mapping[str, Row] = {row["name"]: row for row in artifact.manifest["matrices"]}
        self.kind: SourceKind = artifact.manifest["source"]["kind"]
        self.path: Path = artifact.path
        self.files = SourceFiles(sorted({header.file for header in artifact.tensors.values()}))
        self.config: Mapping[str, Any] = {k: v for k, v in artifact.config.items() if k != "quantization_config"}
        self.tensors: Mapping[str, TensorInfo] = self._described()

    def _described(self) -> dict[str, TensorInfo]:
        factored = {name: row for name, row in self.rows.items() if form_of(row["form"]).is_compressed}
        factors = {part for row in factored.values() for part in factor_names(row).values()}
        cut = {bias_of(name): row["shape"][0] for name, row in factored.items() if form_of(row["form"]).cuts_outputs}
        found = {}
        for name, header in self._artifact.tensors.items():
            if name not in factors:
                place = ByteRange(header.file, header.offset, header.length)
                shape = (cut[name],) if name in cut else header.shape
                found[name] = TensorInfo(name, header.dtype, shape, None if name in cut else place)
        dtype = STORED_DTYPE[self._artifact.model["dtype"]]
        return found | {n: TensorInfo(n, dtype, (row["shape"][0], row["shape"][1])) for n, row in factored.items()}

    def read(self, name: str) -> Tensor:
        """Return a stored tensor; for a factored matrix the product, float32.

        The biases of an MLP with fewer neurons have their stored, smaller size.
        """
        if name in self._artifact.tensors:
            return stored_tensor(self._artifact, name)
        return torch.from_numpy(self.product(name)).to(torch.float32)

    def companions(self) -> Companions:
        """Return the artifact's copies of the files that accompany the original, such as the tokenizer."""
        stated = Stated(self.path, self._artifact.config, {}, self._artifact.config)
        return finished(artifact_companions(self._artifact), stated)

    def stored(self, name: str) -> dict[str, Tensor]:
        """Return the stored tensors of a matrix by suffix; a dense matrix has only `weight`."""
        return {suffix: stored_tensor(self._artifact, part) for suffix, part in factor_names(self.rows[name]).items()}

    def product(self, name: str) -> Matrix:
        """Return a matrix multiplied out, (m, n); rows or columns of dropped neurons are zero."""
        row = self.rows[name]
        m, n = row["shape"]
        return form_of(row["form"]).multiply((m, n), arrays(self.stored(name)))

    def bias(self, name: str) -> Tensor | None:
        """Return the stored bias of a linear, by its weight name; None if it has none."""
        part = bias_of(name)
        return stored_tensor(self._artifact, part) if part in self._artifact.tensors else None

    def plan(self) -> Plan:
        """Return the plan with the artifact's present sizes."""
        matrices = [
            MatrixPlan(name, (row["shape"][0], row["shape"][1]), row["form"], row["rank"], row["reason"])
            for name, row in self.rows.items()
        ]
        return assemble(self, matrices, (), 0)
