"""Writes the components of a scored conversion, with which `resize` can cut the artifact to any smaller size.

There are two files. `components.json` holds the cost curves that divide a budget. `components.safetensors` holds, for
each matrix, the basis of its approximation, with columns in the order of their importance. For each MLP, it holds the
order of the neurons and the triangular factor that refits down to the first of them (`factorization.nested`). The
components are nested, so they serve every size up to the artifact's. With other scores than the closed-form ones (a
learned spectrum), the order of columns and the curves would change, but the readers would not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curconvert.allocation.curves import Curve
from curconvert.artifact.safetensors_writer import SafetensorsWriter
from curconvert.base.layout import TensorSpec
from curconvert.base.names import bias_of, layer_of
from curconvert.base.plan import Plan
from curconvert.base.roles import Role
from curconvert.base.types import Indices, Matrix
from curconvert.calibration.evidence import Evidence
from curconvert.execution.task import Executor
from curconvert.factorization.nested import elimination, nested_basis, packed
from curconvert.factorization.projection import Projection
from curconvert.factorization.tasks import best_approximations, lapack
from curconvert.families.roles import role_of
from curconvert_runtime.checks.fidelity import Progress
from curconvert_runtime.format.files import COMPONENTS, SCORES
from curconvert_runtime.format.forms.form import factor_name
from curconvert_schemas import validate

SCHEMA = "components-1.0"
STORED = torch.bfloat16
"""Enough for a basis: rounding rotates the kept subspace slightly, and a cut's error grows with that angle squared."""
Read = Callable[[Sequence[str]], Mapping[str, Projection]]
_WHOLE = 2**62  # bytes: one file, whatever its size


@dataclass(frozen=True)
class BasisTask:
    """Computes the basis of one matrix.

    Attributes:
        name: Weight name.
        projection: The linear.
        fisher: Second moment of the gradient at its output, (out_features, out_features).
        rank: Number of columns.
        ridge: λ of `H + λ diag(H)`.
    """

    name: str
    projection: Projection
    fisher: Matrix
    rank: int
    ridge: float

    def run(self) -> dict[str, Tensor]:
        """Return the stored tensors, by suffix.

        Raises:
            BackendError: A LAPACK routine did not converge.
        """
        with lapack(self.name):
            basis = nested_basis(best_approximations(self.projection, self.fisher, self.ridge), self.rank)
        found = {"basis": torch.from_numpy(basis).to(STORED)}
        if self.projection.bias is not None:
            found["mean"] = torch.from_numpy(self.projection.statistics.mean).to(torch.float32)
        return found


@dataclass(frozen=True)
class EliminationTask:
    """Computes the factor that refits the down linear of one MLP to fewer neurons.

    Attributes:
        name: Weight name of down.
        projection: The down linear.
        order: The artifact's neurons, those that are dropped last first.
        ridge: λ of the refit.
    """

    name: str
    projection: Projection
    order: Indices
    ridge: float

    def run(self) -> dict[str, Tensor]:
        """Return the stored tensors, by suffix; raises as `BasisTask.run`."""
        with lapack(self.name):
            factor = elimination(self.projection.metric.gram, self.order, self.ridge)
        found = {"order": torch.from_numpy(self.order), "elimination": torch.from_numpy(packed(factor)).to(STORED)}
        if self.projection.bias is not None:
            found["mean"] = torch.from_numpy(self.projection.statistics.mean[self.order]).to(torch.float32)
        return found


def write_components(
    work: Path,
    plan: Plan,
    curves: Sequence[Curve],
    evidence: Evidence,
    read: Read,
    ridge: float,
    executor: Executor,
    progress: Progress,
) -> None:
    """Write both files for an artifact.

    Args:
        work: The artifact's folder.
        plan: The artifact's sizes; the components end at these sizes.
        curves: Curves of every module that may be compressed.
        evidence: Statistics of the original.
        read: Returns linears of the original by weight name, with the statistics of their inputs.
        ridge: λ of `H + λ diag(H)`.
        executor: Runs the decompositions.
        progress: Called after each layer.

    Raises:
        InputError: A weight or its inputs are not finite.
        BackendError: A LAPACK routine did not converge.
    """
    sizes = module_sizes(plan, curves)
    scores = {"schema": SCHEMA, "modules": [_described(curve) for curve in curves]}
    validate(scores, SCHEMA)
    text = json.dumps(scores, sort_keys=True, separators=(",", ":"), allow_nan=False)
    (work / SCORES).write_text(text + "\n", encoding="utf-8")
    shapes = {matrix.name: matrix.shape for matrix in plan.matrices}
    specs = [
        TensorSpec(factor_name(name, suffix), kind, shape)
        for name, size in sizes.items()
        for suffix, (kind, shape) in layout(name, shapes[name], size, biased=bias_of(name) in plan.biases).items()
    ]
    layers: dict[int, list[str]] = {}
    for name in sizes:
        layers.setdefault(layer_of(name), []).append(name)
    with SafetensorsWriter(work, specs, Path(COMPONENTS).stem, _WHOLE) as writer:
        for done, names in enumerate(layers.values(), 1):
            tasks = _tasks(names, sizes, evidence, read, ridge)
            for name, found in zip(names, executor.map(tasks), strict=True):
                for suffix, tensor in found.items():
                    writer.write(factor_name(name, suffix), tensor)
            progress("components", done, len(layers))
        writer.finish()


def module_sizes(plan: Plan, curves: Sequence[Curve]) -> dict[str, int]:
    """Return the number of components of each module, by the weight name that they are stored under.

    Args:
        plan: Plan of an artifact.
        curves: Curves of its modules.
    """
    matrices = {matrix.name: matrix for matrix in plan.matrices}
    found = {}
    for curve in curves:
        name = stored_under(curve.forms)
        matrix = matrices[name]
        whole = matrix.shape[1] if role_of(name) is Role.DOWN else min(matrix.shape)
        found[name] = whole if matrix.rank is None else matrix.rank
    return found


def stored_under(forms: Mapping[str, str]) -> str:
    """Return the weight name under which a module's components are stored: the matrix's, or down's for an MLP."""
    return next((name for name in forms if role_of(name) is Role.DOWN), next(iter(forms)))


def layout(
    name: str, shape: tuple[int, int], size: int, *, biased: bool
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return dtype and shape of the stored tensors of a module, by suffix.

    Args:
        name: Weight name under which they are stored.
        shape: (m, n) of that weight.
        size: Number of components.
        biased: Whether the linear has a bias, which absorbs the mean error.
    """
    m, n = shape
    found: dict[str, tuple[torch.dtype, tuple[int, ...]]]
    if role_of(name) is Role.DOWN:
        found = {"order": (torch.int32, (size,)), "elimination": (STORED, (size * (size - 1) // 2,))}
        return found | ({"mean": (torch.float32, (size,))} if biased else {})
    found = {"basis": (STORED, (m, size))}
    return found | ({"mean": (torch.float32, (n,))} if biased else {})


def components_bytes(targets: Mapping[str, tuple[int, int]]) -> int:
    """Return an upper limit on the bytes of the components of some matrices, without the means for biases.

    Args:
        targets: Shapes of the weights that may be compressed, by name.
    """
    return sum(
        kind.itemsize * int(np.prod(size, dtype=np.int64))
        for name, (m, n) in targets.items()
        if role_of(name) not in (Role.GATE, Role.UP)
        for kind, size in layout(name, (m, n), n if role_of(name) is Role.DOWN else min(m, n), biased=False).values()
    )


def _described(curve: Curve) -> dict[str, Any]:
    """Return a curve's entry in the file, without the first size: the dense module costs 0."""
    return {"forms": dict(curve.forms), "sizes": list(curve.sizes[1:]), "costs": curve.costs[1:].tolist()}


def _tasks(
    names: Sequence[str], sizes: Mapping[str, int], evidence: Evidence, read: Read, ridge: float
) -> Iterator[BasisTask | EliminationTask]:
    parts = read(names)
    for name in names:
        if role_of(name) is Role.DOWN:
            yield EliminationTask(name, parts[name], evidence.leading(name, sizes[name]), evidence.ridge(name))
        else:
            yield BasisTask(name, parts[name], evidence.fisher(name), sizes[name], ridge)
