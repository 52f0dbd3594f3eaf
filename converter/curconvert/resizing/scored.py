"""Reads and checks a scored artifact's curves and components, and plans smaller sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curconvert.allocation.curves import Curve
from curconvert.allocation.plans import allocated
from curconvert.base.errors import InputError, IntegrityError, UnsupportedError
from curconvert.base.forms import traits_of
from curconvert.base.layout import SAFETENSORS_DTYPES
from curconvert.base.names import bias_of
from curconvert.base.plan import Plan
from curconvert.base.roles import MODULAR
from curconvert.base.types import Indices, Matrix, Vector
from curconvert.factorization.nested import unpacked
from curconvert.families.roles import role_of
from curconvert.resizing.components import SCHEMA, layout, module_sizes, stored_under
from curconvert.resizing.source import ArtifactSource
from curconvert_runtime.format import strict_json
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.files import COMPONENTS, SCORES
from curconvert_runtime.format.forms.form import factor_name
from curconvert_runtime.format.tensor_file import TensorHeader, read_headers, read_tensor
from curconvert_schemas import SchemaError, validate

_LIMIT = 2**28  # largest size of the curves' file, in bytes


@dataclass(frozen=True)
class Scored:
    """Gives access to a scored artifact's tensors, sizes, curves and components.

    Attributes:
        source: Its tensors.
        plan: Its sizes.
        curves: Curves of its modules; sizes above the artifact's have an infinite cost.
    """

    source: ArtifactSource
    plan: Plan
    curves: tuple[Curve, ...]
    _headers: Mapping[str, TensorHeader]

    @classmethod
    def open(cls, artifact: Artifact) -> Scored:
        """Read the curves of an artifact, and check the components of each module.

        Raises:
            UnsupportedError: The artifact is quantized.
            InputError: It has no scores.
            IntegrityError: Curves or components do not fit the artifact.
        """
        if artifact.quantized:
            raise UnsupportedError(
                f"{artifact.path}: its weights are quantized; resize an artifact made without --quantize"
            )
        if not artifact.has(SCORES):
            raise InputError(
                f"{artifact.path}: has no {SCORES}; resize needs an artifact of `convert --method auto --scored`, "
                "not one that `heal` or `resize` made from it"
            )
        source = ArtifactSource(artifact)
        plan, path = source.plan(), artifact.file(SCORES)
        scores = strict_json.read(path, limit=_LIMIT)
        try:
            validate(scores, SCHEMA)
        except SchemaError as error:
            raise IntegrityError(f"{path}: {error}; convert the model again") from None
        fault = _fault(scores["modules"], plan)
        if fault:
            raise IntegrityError(f"{path}: {fault}; convert the model again")
        shapes = {matrix.name: matrix.shape for matrix in plan.matrices}
        curves = [
            Curve.of(m["forms"], [shapes[name] for name in m["forms"]], dict(zip(m["sizes"], m["costs"], strict=True)))
            for m in scores["modules"]
        ]
        headers = read_headers(artifact.file(COMPONENTS))
        wanted = _expected(plan, curves)
        found = {name: (header.dtype, header.shape) for name, header in headers.items()}
        for name in wanted.keys() | found.keys():
            if wanted.get(name) != found.get(name):
                raise IntegrityError(
                    f"{artifact.file(COMPONENTS)}: tensor {name[:200]!r} is {found.get(name)}, expected "
                    f"{wanted.get(name)}; convert the model again"
                )
        ranks = {matrix.name: matrix.rank or 0 for matrix in plan.matrices}
        within = tuple(_up_to(curve, ranks[next(iter(curve.forms))]) for curve in curves)
        return cls(source, plan, within, headers)

    def smaller(self, target: int, asked: str) -> Plan:
        """Return the plan for a smaller size.

        Args:
            target: Parameters of the whole model.
            asked: The user's option, for messages.

        Raises:
            InputError: The artifact is already smaller, or cannot become that small.
        """
        has, before = self.plan.parameters_after, self.plan.parameters_before
        if not 0 < target < has:
            raise InputError(
                f"{asked}: the scored artifact has {has} parameters, {has / before:.4f} of the original's; ask for "
                "fewer, or score a larger one"
            )
        return allocated(self.plan, self.curves, target)

    def basis(self, name: str) -> Matrix:
        """Return the basis of a matrix, (m, k)."""
        return self._read(name, "basis")

    def order(self, name: str) -> Indices:
        """Return the neurons before a down linear, those that are dropped last first, (k,).

        Raises:
            IntegrityError: They are not the artifact's neurons.
        """
        header = self._headers[factor_name(name, "order")]
        order: Indices = np.array(read_tensor(header))
        kept = self.source.stored(name).get("cols")
        have = np.arange(self.source.rows[name]["shape"][1]) if kept is None else kept.numpy()
        if not np.array_equal(np.sort(order), have):
            raise IntegrityError(f"{header.file}: {header.name!r} is not an order of the kept neurons; convert again")
        return order

    def elimination(self, name: str, size: int) -> Matrix:
        """Return the factor that refits a down linear, (size, size)."""
        return unpacked(self._read(name, "elimination"), size)

    def mean(self, name: str) -> Vector | None:
        """Return the mean of a linear's inputs; None without a bias. For down, it is in the order of the neurons."""
        return self._read(name, "mean") if factor_name(name, "mean") in self._headers else None

    def _read(self, name: str, suffix: str) -> NDArray[np.float64]:
        header = self._headers[factor_name(name, suffix)]
        values = np.asarray(read_tensor(header), np.float64)
        if not np.isfinite(values).all():
            raise IntegrityError(f"{header.file}: {header.name!r} holds NaN or infinity; convert the model again")
        return values


def _up_to(curve: Curve, size: int) -> Curve:
    """Return a curve in which sizes above a given one have an infinite cost; size 0 means the dense matrices."""
    larger = np.arange(len(curve.sizes)) < curve.sizes.index(size)
    return replace(curve, costs=np.where(larger, math.inf, curve.costs))


def _expected(plan: Plan, curves: list[Curve]) -> dict[str, tuple[str, tuple[int, ...]]]:
    shapes = {matrix.name: matrix.shape for matrix in plan.matrices}
    return {
        factor_name(name, suffix): (SAFETENSORS_DTYPES[dtype], shape)
        for name, size in module_sizes(plan, curves).items()
        for suffix, (dtype, shape) in layout(name, shapes[name], size, biased=bias_of(name) in plan.biases).items()
    }


def _fault(modules: list[dict[str, Any]], plan: Plan) -> str | None:
    """Return the first contradiction between the scores and the plan, or None; the scores conform to their schema."""
    matrices = {matrix.name: matrix for matrix in plan.matrices}
    named = [name for module in modules for name in module["forms"]]
    if len(set(named)) != len(named) or not set(named) <= matrices.keys():
        return "a matrix is named twice, or is not in the manifest"
    if left := {name for name, matrix in matrices.items() if matrix.rank is not None} - set(named):
        return f"{min(left)[:200]!r} is compressed, and has no curve"
    for module in modules:
        forms, sizes = module["forms"], module["sizes"]
        name = stored_under(forms)
        found = {role_of(part): form for part, form in forms.items()}
        places = {part.rsplit(".", 2)[0] for part in forms}
        alone = len(forms) == 1 and traits_of(forms[name]).nested
        if not (found == MODULAR or alone) or len(places) > 1:
            return f"{name[:200]!r} belongs to neither one interpolative matrix nor one modular MLP"
        whole = matrices[name].shape[1] if len(forms) > 1 else min(matrices[name].shape)
        if len(set(sizes)) != len(module["costs"]) or len(set(sizes)) != len(sizes) or max(sizes, default=0) >= whole:
            return f"{name[:200]!r}: expected one cost of each size, and sizes below {whole}"
        for part, form in forms.items():
            matrix = matrices[part]
            if matrix.rank is not None and (matrix.rank not in sizes or matrix.form != form):
                return f"{part[:200]!r} is not stored in one of its sizes"
    return None
