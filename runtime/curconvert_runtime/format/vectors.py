"""Checks the values of stored index vectors (rows, columns, orders) against the forms of their matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from curconvert_runtime.errors import IntegrityError, unsound
from curconvert_runtime.format.files import MANIFEST
from curconvert_runtime.format.forms import form_of
from curconvert_runtime.format.forms.form import Shared
from curconvert_runtime.format.tensor_file import TensorHeader, read_tensor

Matrices = Sequence[Mapping[str, Any]]
Tensors = Mapping[str, TensorHeader]
# Forms of the linears of an MLP with fewer neurons. All three are stored in these forms, or none is.
MODULAR = {"gate_proj": "modular_rows", "up_proj": "modular_rows", "down_proj": "modular_columns"}


def check_vectors(matrices: Matrices, tensors: Tensors) -> None:
    """Raise `IntegrityError` if an index vector breaks a rule of its form, its module, or a shared factor.

    The caller has checked the manifest's matrices against the tensors' names and shapes.
    """
    _check_indices(matrices, tensors)
    _check_modules(matrices, tensors)
    _check_shared(matrices, tensors)


def _check_indices(matrices: Matrices, tensors: Tensors) -> None:
    """Check each matrix's index vectors against the rules of its form."""
    for matrix in matrices:
        stem, form, (m, n) = matrix["name"].removesuffix(".weight"), form_of(matrix["form"]), matrix["shape"]
        rank, shared = matrix["rank"], Shared.of(matrix)
        indices = {s: read_tensor(tensors[f"{stem}.{s}"]) for s in form.indices}
        fault = form.index_fault((m, n), rank, indices, shared)
        if fault is not None:
            name, what = f"{stem}.{fault[0]}", fault[1]
            raise unsound(tensors[name].file, f"{name!r} {what}")


def _check_modules(matrices: Matrices, tensors: Tensors) -> None:
    """Check that the three linears of a smaller MLP are all there and keep the same neurons, ascending."""
    modules: dict[str, dict[str, Mapping[str, Any]]] = {}
    for matrix in matrices:
        if form_of(matrix["form"]).joint:
            module, linear = matrix["name"].removesuffix(".weight").rpartition(".")[::2]
            modules.setdefault(module, {})[linear] = matrix
    for module, linears in modules.items():
        if {linear: matrix["form"] for linear, matrix in linears.items()} != MODULAR:
            forms = ", ".join(f"{linear} {form}" for linear, form in MODULAR.items())
            raise IntegrityError(f"{MANIFEST}: {module[:200]!r} is modular in parts; expected {forms}")
        *others, down = (f"{module}.{linear}.{form_of(form).kept}" for linear, form in MODULAR.items())
        kept = read_tensor(tensors[down])
        for name in others:
            if not np.array_equal(read_tensor(tensors[name]), kept):
                raise unsound(tensors[name].file, f"{name!r} and {down!r} keep different neurons")
        if (np.diff(kept) < 0).any():
            raise unsound(tensors[down].file, f"{down!r} is not ascending")


def _check_shared(matrices: Matrices, tensors: Tensors) -> None:
    """Check that two matrices with a common R name each other, and that each row of R belongs to one of them."""
    named_matrices = {matrix["name"]: matrix for matrix in matrices}
    for name, matrix in named_matrices.items():
        shared = Shared.of(matrix)
        if shared is None:
            continue
        pair = [named_matrices.get(member, {}) for member in shared.matrices]
        named = {tuple((part.get("shared") or {}).get("matrices", ())) for part in pair}
        if name not in shared.matrices or len(set(shared.matrices)) < len(pair) or named != {shared.matrices}:
            raise IntegrityError(f"{MANIFEST}: {name[:200]!r} shares R with a matrix that does not share it back")
        if len({(part["rank"], part["shape"][1]) for part in pair}) > 1:
            raise IntegrityError(f"{MANIFEST}: {name[:200]!r} shares R, and the ranks or input widths differ")
        stems = [member.removesuffix(".weight") for member in shared.matrices]
        places = [read_tensor(tensors[f"{stem}.order"])[read_tensor(tensors[f"{stem}.rows"])] for stem in stems]
        if not np.array_equal(np.sort(np.concatenate(places)), np.arange(matrix["rank"])):
            raise IntegrityError(
                f"{tensors[f'{stems[0]}.rows'].file}: {name[:200]!r}: rows of the common R are not divided "
                "between its two matrices; convert the model again"
            )
