"""Tasks that factorize planned matrices or modules from tensors in memory; they read no files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from curconvert.base.dtypes import dtype_name
from curconvert.base.errors import BackendError, InputError
from curconvert.base.finite import all_finite
from curconvert.base.plan import MatrixPlan
from curconvert.base.roles import MODULAR, Role
from curconvert.base.types import Indices, Matrix
from curconvert.factorization.attention_modules import factorize_query_key, factorize_value_output
from curconvert.factorization.interpolative import interpolative_from
from curconvert.factorization.modular import ModularOptions, factorize_mlp
from curconvert.factorization.projection import Projection, with_bias
from curconvert.factorization.shared import factorize_shared
from curconvert.factorization.two_sided import DAMPING, TwoSided, damped, two_sided
from curconvert.factorization.types import Factorization
from curconvert.families.family import linear_name
from curconvert.families.heads import Heads
from curconvert.families.roles import role_of
from curconvert.linalg.gram import ridged
from curconvert.linalg.statistics import InputStatistics


@dataclass(frozen=True)
class AllocatedTask:
    """Factorizes one matrix of an allocation into interpolative factors, optimal for the inputs and the loss.

    Attributes:
        plan: The matrix with its rank.
        weight: W, (out_features, in_features), any float dtype.
        bias: (out_features,); None if there is none.
        statistics: Statistics of the input.
        fisher: Second moment of the gradient at the output, (out_features, out_features).
        ridge: λ of `H + λ diag(H)`.
        dtype: Deployed dtype.
    """

    plan: MatrixPlan
    weight: Tensor
    bias: Tensor | None
    statistics: InputStatistics
    fisher: Matrix
    ridge: float
    dtype: torch.dtype

    def run(self) -> dict[str, Factorization]:
        """Return the factors, with their bias, by the weight's name.

        Raises:
            InputError: A factor does not fit the deployed dtype.
            BackendError: A LAPACK routine did not converge.
        """
        assert self.plan.rank is not None
        projection = Projection(self.weight, self.statistics, self.bias)
        with lapack(self.plan.name):
            best = best_approximations(projection, self.fisher, self.ridge).factors(self.plan.rank)
            factors = interpolative_from(self.weight, *best, projection.metric, self.dtype)
        return {self.plan.name: stored(self.plan.name, factors, projection, self.dtype)}


@dataclass(frozen=True)
class LearnedTask:
    """Stores the learned factors of one matrix in interpolative form.

    Attributes:
        plan: The matrix with its rank.
        weight: W, (out_features, in_features), any float dtype.
        bias: (out_features,); None if there is none.
        statistics: Statistics of the input.
        factors: (out_features, rank) and (rank, in_features).
        dtype: Deployed dtype.
    """

    plan: MatrixPlan
    weight: Tensor
    bias: Tensor | None
    statistics: InputStatistics
    factors: tuple[NDArray[np.float32], NDArray[np.float32]]
    dtype: torch.dtype

    def run(self) -> dict[str, Factorization]:
        """Return the factors, with their bias, by the weight's name; raises as `AllocatedTask.run`."""
        projection = Projection(self.weight, self.statistics, self.bias)
        left, right = (factor.astype(np.float64) for factor in self.factors)
        with lapack(self.plan.name):
            basis, triangle = scipy.linalg.qr(left, mode="economic", check_finite=False)
            found = interpolative_from(self.weight, basis, triangle @ right, projection.metric, self.dtype)
        return {self.plan.name: stored(self.plan.name, found, projection, self.dtype)}


@dataclass(frozen=True)
class SharedTask:
    """Factorizes one of two matrices that share a basis.

    Attributes:
        plan: The matrix to factorize, with its rank and the names of both.
        projections: Both linears, in the order of these names.
        fishers: Second moment of the gradient at each one's output, (out_features, out_features).
        ridge: λ of `H + λ diag(H)`.
        dtype: Deployed dtype.
    """

    plan: MatrixPlan
    projections: Sequence[Projection]
    fishers: Sequence[Matrix]
    ridge: float
    dtype: torch.dtype

    def run(self) -> dict[str, Factorization]:
        """Return the factors of the plan's matrix, with their bias, by its name; raises as `AllocatedTask.run`."""
        name, rank, shared = self.plan.name, self.plan.rank, self.plan.shared
        assert rank is not None
        assert shared is not None
        with lapack(name):
            pair = factorize_shared(self.projections, self.fishers, rank, self.ridge, self.dtype)
        own = shared.matrices.index(name)
        return {name: stored(name, pair[own], self.projections[own], self.dtype)}


@dataclass(frozen=True)
class MLPTask:
    """Factorizes the three linears of an MLP, which keep the same neurons.

    Attributes:
        names: Weight name of each linear, by role.
        projections: The linears, by role.
        rank: Number of neurons to keep.
        ridge: λ, see `ModularOptions`.
        dtype: Deployed dtype.
        kept: Neurons to keep, ascending; None decides by ridge leverage.
    """

    names: Mapping[Role, str]
    projections: Mapping[Role, Projection]
    rank: int
    ridge: float
    dtype: torch.dtype
    kept: Indices | None = None

    def run(self) -> dict[str, Factorization]:
        """Return the three factorizations by weight name; raises as `AllocatedTask.run`."""
        ridges = ModularOptions(leverage_ridge=self.ridge, ridge=self.ridge)
        with lapack(self.names[Role.DOWN]):
            found = factorize_mlp(self.projections, self.rank, ridges, self.dtype, self.kept)
        return _named(found, self.names, self.dtype)


@dataclass(frozen=True)
class HeadsTask:
    """Factorizes two linears whose heads keep the same dimensions: query and key, or value and output.

    Attributes:
        names: Weight name of each linear, by role.
        projections: The linears, by role.
        heads: The layer's heads.
        kept: Number of dimensions to keep in each head.
        ridge: λ of `H + λ diag(H)`; for value and output only.
        dtype: Deployed dtype.
    """

    names: Mapping[Role, str]
    projections: Mapping[Role, Projection]
    heads: Heads
    kept: int
    ridge: float
    dtype: torch.dtype

    def run(self) -> dict[str, Factorization]:
        """Return the two factorizations by weight name; raises as `AllocatedTask.run`."""
        with lapack(next(iter(self.names.values()))):
            if Role.QUERY in self.names:
                found = factorize_query_key(self.projections, self.heads, self.kept, self.dtype)
            else:
                found = factorize_value_output(self.projections, self.heads, self.kept, self.ridge, self.dtype)
        return _named(found, self.names, self.dtype)


def mlp_task(
    plans: Sequence[MatrixPlan],
    parts: Mapping[str, Projection],
    ridge: float,
    dtype: torch.dtype,
    kept: Indices | None = None,
) -> MLPTask:
    """Return the task for the three linears of one MLP.

    Args:
        plans: Plans of these linears.
        parts: The linears by weight name.
        ridge: λ, see `ModularOptions`.
        dtype: Deployed dtype.
        kept: Neurons to keep, ascending; None decides by ridge leverage.

    Raises:
        InputError: A linear is missing, or they are planned with different sizes.
    """
    names = {role_of(plan.name): plan.name for plan in plans}
    ranks = {plan.rank for plan in plans if plan.rank is not None}
    if {role_of(plan.name): plan.form for plan in plans} != MODULAR or len(ranks) != 1:
        needed = ", ".join(map(linear_name, MODULAR))
        raise InputError(f"{plans[0].name}: a smaller MLP needs {needed}, all planned with one rank")
    three = {role: parts[name] for role, name in names.items()}
    return MLPTask(names, three, ranks.pop(), ridge, dtype, kept)


def best_approximations(projection: Projection, fisher: Matrix, ridge: float) -> TwoSided:
    """Return the best approximations of a linear for all ranks, optimal for its inputs and the loss.

    Args:
        projection: The linear.
        fisher: Second moment of the gradient at its output, (out_features, out_features).
        ridge: λ of `H + λ diag(H)`.
    """
    weight, gram = projection.weight.to(torch.float64).numpy(), ridged(projection.metric.gram, ridge)
    return two_sided(weight, gram, damped(fisher, DAMPING))


def stored(name: str, factors: Factorization, projection: Projection, dtype: torch.dtype) -> Factorization:
    """Return factors with their best bias; reject values that do not fit the deployed dtype."""
    factors = with_bias(factors, projection, dtype)
    check_fit(name, factors.tensors, dtype)
    return factors


def _named(
    found: Mapping[Role, Factorization], names: Mapping[Role, str], dtype: torch.dtype
) -> dict[str, Factorization]:
    """Return a module's factors by weight name; reject values that do not fit the deployed dtype."""
    for role, factors in found.items():
        check_fit(names[role], factors.tensors, dtype)
    return {names[role]: factors for role, factors in found.items()}


@contextmanager
def lapack(name: str) -> Iterator[None]:
    """Turn a failure of LAPACK inside the context into a `BackendError` that names the matrix."""
    try:
        yield
    except np.linalg.LinAlgError as error:
        raise BackendError(f"{name}: LAPACK failed ({error}); try another --method or --select") from error


def check_fit(name: str, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Reject factors that overflow in the deployed dtype.

    Args:
        name: The weight's name.
        tensors: By suffix, rounded.
        dtype: Deployed dtype.

    Raises:
        InputError: A tensor is not finite.
    """
    for suffix, tensor in tensors.items():
        if not all_finite(tensor):
            raise InputError(f"{name}: {suffix} does not fit {dtype_name(dtype)}; choose --dtype bfloat16 or float32")
