"""What a scored conversion writes beside the weights: with it the artifact alone can be cut to any smaller size.

Two files. `components.json` has the curves by which a budget is spent. `components.safetensors` has of each module what
the weights do not say: the basis in which a matrix was approximated, its columns in the order of their worth; the order
of an MLP's neurons, and the triangular factor that refits down to the first of them (`factorization.nested`). All
of it is nested, so it serves every size up to the artifact's. Other scores than the closed-form ones (a learned
spectrum) would change the columns' order and the curves, and no reader.
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
"""Errors of a basis only turn what a cut keeps a little, and what it loses is least there: they count squared."""
Read = Callable[[Sequence[str]], Mapping[str, Projection]]
_WHOLE = 2**62  # bytes: one file, whatever its size


@dataclass(frozen=True)
class BasisTask:
    """The basis of one matrix.

    Attributes:
        name: Weight name.
        projection: The linear.
        fisher: Second moment of the gradient at its output, (out_features, out_features).
        rank: Columns that are wanted.
        ridge: λ of `H + λ diag(H)`.
    """

    name: str
    projection: Projection
    fisher: Matrix
    rank: int
    ridge: float

    def run(self) -> dict[str, Tensor]:
        """Return what is stored, by suffix.

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
    """The order of one MLP's neurons, and what refits down to the first of them.

    Attributes:
        name: Weight name of down.
        projection: That linear.
        order: Neurons that are there, those that are dropped last first.
        ridge: λ of the refit.
    """

    name: str
    projection: Projection
    order: Indices
    ridge: float

    def run(self) -> dict[str, Tensor]:
        """Return what is stored, by suffix; raises as `BasisTask.run`."""
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
        work: Its folder.
        plan: The sizes that the artifact has: nothing is kept of what is beyond them.
        curves: Of every module that may be compressed.
        evidence: Statistics of the original.
        read: Returns linears of the original by weight name, with the statistics of their inputs.
        ridge: λ of `H + λ diag(H)`.
        executor: Decomposes.
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
    """Return how many components of each module there are, by the weight name that they are stored under.

    Args:
        plan: Of an artifact.
        curves: Of its modules.
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
    """Return the weight name under which a module's components are stored: the matrix', or down's of an MLP."""
    return next((name for name in forms if role_of(name) is Role.DOWN), next(iter(forms)))


def layout(
    name: str, shape: tuple[int, int], size: int, *, biased: bool
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return dtype and shape of what is stored for a module, by suffix.

    Args:
        name: Weight name that it is stored under.
        shape: (m, n) of that weight.
        size: Components.
        biased: Whether a bias carries the mean of what is lost.
    """
    m, n = shape
    found: dict[str, tuple[torch.dtype, tuple[int, ...]]]
    if role_of(name) is Role.DOWN:
        found = {"order": (torch.int32, (size,)), "elimination": (STORED, (size * (size - 1) // 2,))}
        return found | ({"mean": (torch.float32, (size,))} if biased else {})
    found = {"basis": (STORED, (m, size))}
    return found | ({"mean": (torch.float32, (n,))} if biased else {})


def components_bytes(targets: Mapping[str, tuple[int, int]]) -> int:
    """Return the bytes of the components of some matrices, biases aside, at most.

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
    """Return what a reader cannot compute by itself: the first size, the whole, costs nothing."""
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
