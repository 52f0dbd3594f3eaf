"""Cuts one module of a scored artifact to a smaller size, from its stored tensors and its components alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from curconvert.base.plan import MatrixPlan
from curconvert.base.roles import Role
from curconvert.base.types import Indices, Matrix, Vector
from curconvert.execution.task import Task
from curconvert.factorization.interpolative import spanned
from curconvert.factorization.measured import deployed
from curconvert.factorization.nested import eliminated, truncated
from curconvert.factorization.tasks import check_fit, lapack
from curconvert.factorization.types import arrays
from curconvert.families.roles import role_of
from curconvert.resizing.scored import Scored

Tensors = dict[str, dict[str, Tensor]]
"""Stored tensors by weight name and suffix, with `bias` if it differs from the artifact's."""


@dataclass(frozen=True)
class MatrixCut:
    """Cuts one matrix to a smaller rank.

    Attributes:
        plan: The matrix with its new rank.
        product: The artifact's factors multiplied out, (out_features, in_features).
        basis: (out_features, k).
        bias: The artifact's, (out_features,); None if there is none.
        mean: Mean of the inputs, (in_features,); None without a bias.
        dtype: Deployed dtype.
    """

    plan: MatrixPlan
    product: Matrix
    basis: Matrix
    bias: Tensor | None
    mean: Vector | None
    dtype: torch.dtype

    def run(self) -> Tensors:
        """Return the tensors of the smaller matrix.

        Raises:
            InputError: A tensor does not fit the deployed dtype.
            BackendError: A LAPACK routine did not converge.
        """
        name, rank = self.plan.name, self.plan.rank
        assert rank is not None
        with lapack(name):
            found = spanned(*truncated(self.product, self.basis, rank), self.dtype)
        if self.bias is not None and self.mean is not None:
            lost = (self.product - self.plan.entry.multiply(self.plan.shape, arrays(found))) @ self.mean
            found["bias"] = deployed(self.bias.to(torch.float64).numpy() + lost, self.dtype)
        check_fit(name, found, self.dtype)
        return {name: found}


@dataclass(frozen=True)
class MLPCut:
    """Cuts an MLP to fewer neurons.

    Attributes:
        names: Weight name of each linear, by role.
        weights: Weights of each linear, for the artifact's neurons.
        biases: Biases of each linear that has one.
        kept: The artifact's neurons, (k,) ascending.
        order: The same neurons, those that are dropped last first.
        factor: The factor that refits down, (k, k).
        mean: Mean of the activations, (k,), in the order of `order`; None if down has no bias.
        count: Number of neurons to keep.
        dtype: Deployed dtype.
    """

    names: Mapping[Role, str]
    weights: Mapping[Role, Tensor]
    biases: Mapping[Role, Tensor]
    kept: Indices
    order: Indices
    factor: Matrix
    mean: Vector | None
    count: int
    dtype: torch.dtype

    def run(self) -> Tensors:
        """Return the tensors of the three linears; raises as `MatrixCut.run`."""
        left = self.order[: self.count]
        rows = np.sort(left)
        index = torch.from_numpy(rows)
        places = torch.from_numpy(np.searchsorted(self.kept, rows))
        found: Tensors = {}
        for role in (Role.GATE, Role.UP):
            found[self.names[role]] = {"weight": self.weights[role].index_select(0, places), "rows": index}
            if role in self.biases:
                found[self.names[role]]["bias"] = self.biases[role].index_select(0, places)
        down = self.names[Role.DOWN]
        W = self.weights[Role.DOWN].to(torch.float64).numpy()[:, np.searchsorted(self.kept, self.order)]
        with lapack(down):
            cut = eliminated(W, self.factor, self.count)
        stored = deployed(cut[:, np.argsort(left)], self.dtype)
        found[down] = {"weight": stored, "cols": index}
        if self.mean is not None:
            smaller = stored.to(torch.float64).numpy() @ self.mean[: self.count][np.argsort(left)]
            bias = self.biases[Role.DOWN].to(torch.float64).numpy() + W @ self.mean - smaller
            found[down]["bias"] = deployed(bias, self.dtype)
        check_fit(down, found[down], self.dtype)
        return found


def cuts(plans: Sequence[MatrixPlan], scored: Scored, dtype: torch.dtype) -> Iterator[Task[Tensors]]:
    """Read the tensors of one block and yield the tasks that cut its modules.

    Args:
        plans: Plans of the block's matrices that become smaller than in the artifact.
        scored: The artifact.
        dtype: Deployed dtype.

    Yields:
        The tasks, the MLP's first: it takes longest.

    Raises:
        IntegrityError: A component is damaged.
    """
    mlp = {role_of(plan.name): plan for plan in plans if plan.entry.joint}
    source = scored.source
    if mlp:
        names = {role: plan.name for role, plan in mlp.items()}
        down, rank = names[Role.DOWN], mlp[Role.DOWN].rank
        assert rank is not None
        order = scored.order(down)
        biases = {role: bias for role, name in names.items() if (bias := source.bias(name)) is not None}
        weights = {role: source.stored(name)["weight"] for role, name in names.items()}
        factor = scored.elimination(down, len(order))
        yield MLPCut(
            names, weights, biases, np.sort(order), order, factor, scored.mean(down), rank, dtype
        )  # fmt: skip
    for plan in sorted((p for p in plans if p.traits.nested), key=lambda plan: -plan.parameters_before):
        name = plan.name
        yield MatrixCut(
            plan, source.product(name), scored.basis(name), source.bias(name), scored.mean(name), dtype
        )  # fmt: skip
