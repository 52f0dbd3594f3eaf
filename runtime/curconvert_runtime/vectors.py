"""What index vectors hold: rows, columns and orders must be what the forms of their matrices ask for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from curconvert_runtime.errors import IntegrityError
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.files import MANIFEST
from curconvert_runtime.format.forms import MODULAR, Shared, index_fault, index_lengths


def check_vectors(artifact: Artifact) -> None:
    """Look at every index vector of an artifact.

    Raises:
        IntegrityError: One is not what its form, its module, or the matrix that it shares rows with asks for.
    """
    _check_indices(artifact)
    _check_modules(artifact)
    _check_shared(artifact)


def _check_indices(artifact: Artifact) -> None:
    """Index vectors must be what their form asks for."""
    for matrix in artifact.manifest["matrices"]:
        if matrix["form"] == "dense":
            continue
        stem, form, (m, n) = matrix["name"].removesuffix(".weight"), matrix["form"], matrix["shape"]
        rank, shared = matrix["rank"], Shared.of(matrix)
        indices = {s: artifact.tensor(f"{stem}.{s}") for s in index_lengths(form, (m, n), rank, shared)}
        fault = index_fault(form, (m, n), rank, indices, shared)
        if fault is not None:
            name, what = f"{stem}.{fault[0]}", fault[1]
            raise IntegrityError(f"{artifact.tensors[name].file}: {name!r} {what}; convert the model again")


def _check_modules(artifact: Artifact) -> None:
    """The three linears of a smaller MLP must be there, and keep the same neurons, ascending."""
    modules: dict[str, dict[str, Mapping[str, Any]]] = {}
    for matrix in artifact.manifest["matrices"]:
        if matrix["form"].startswith("modular_"):
            module, linear = matrix["name"].removesuffix(".weight").rpartition(".")[::2]
            modules.setdefault(module, {})[linear] = matrix
    for module, matrices in modules.items():
        if {linear: matrix["form"] for linear, matrix in matrices.items()} != MODULAR:
            forms = ", ".join(f"{linear} {form}" for linear, form in MODULAR.items())
            raise IntegrityError(f"{MANIFEST}: {module[:200]!r} is modular in parts; expected {forms}")
        down = f"{module}.down_proj.cols"
        kept = artifact.tensor(down)
        for name in (f"{module}.gate_proj.rows", f"{module}.up_proj.rows"):
            if not np.array_equal(artifact.tensor(name), kept):
                raise IntegrityError(
                    f"{artifact.tensors[name].file}: {name!r} and {down!r} keep different neurons; "
                    "convert the model again"
                )
        if (np.diff(kept) < 0).any():
            raise IntegrityError(f"{artifact.tensors[down].file}: {down!r} is not ascending; convert the model again")


def _check_shared(artifact: Artifact) -> None:
    """Two matrices with a common R must name each other, and each of its rows must be a row of one of them."""
    matrices = {matrix["name"]: matrix for matrix in artifact.manifest["matrices"]}
    for name, matrix in matrices.items():
        shared = Shared.of(matrix)
        if shared is None:
            continue
        pair = [matrices.get(member, {}) for member in shared.matrices]
        named = {tuple((part.get("shared") or {}).get("matrices", ())) for part in pair}
        if name not in shared.matrices or len(set(shared.matrices)) < len(pair) or named != {shared.matrices}:
            raise IntegrityError(f"{MANIFEST}: {name[:200]!r} shares R with a matrix that does not share it back")
        if len({(part["rank"], part["shape"][1]) for part in pair}) > 1:
            raise IntegrityError(f"{MANIFEST}: {name[:200]!r} shares R, and the ranks or input widths differ")
        stems = [member.removesuffix(".weight") for member in shared.matrices]
        places = [artifact.tensor(f"{stem}.order")[artifact.tensor(f"{stem}.rows")] for stem in stems]
        if not np.array_equal(np.sort(np.concatenate(places)), np.arange(matrix["rank"])):
            raise IntegrityError(
                f"{artifact.tensors[f'{stems[0]}.rows'].file}: {name[:200]!r}: rows of the common R are not divided "
                "between its two matrices; convert the model again"
            )
