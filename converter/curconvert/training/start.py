"""Solves each linking factor by least squares, from the student's inputs to the teacher's outputs (`--start als`).

This is one sweep of alternating least squares: one factor at a time, while all others stay fixed. Each factor corrects
the errors of earlier blocks in its linear's input, as far as it can.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from curconvert.base.forms import traits_of
from curconvert.base.types import Matrix
from curconvert.blocks.linears.factored import FactoredLinear
from curconvert.blocks.stream import Block
from curconvert.factorization.types import arrays
from curconvert.linalg.gram import least_squares, ridge_solve
from curconvert_runtime.format.forms.form import factor_name

RIDGE = 1e-2
"""λ of `G + λ diag(G)`, G the Gram matrix of `R x`; the same λ as in a conversion. It pulls towards the old factor."""


def solve_block(teacher: Block, student: Block, theirs: Tensor, ours: Tensor) -> dict[str, Tensor]:
    """Solve the linking factors of a block one after the other, each on the student's output with the earlier ones.

    Args:
        teacher: The original's block.
        student: The compressed model's block; its linking factors are changed in place.
        theirs: The teacher's input, (sequences, tokens, hidden_size); one sequence must have gone through `embed`.
        ours: The student's input, the same shape.

    Returns:
        The factors by stored name, float32.
    """
    found = {}
    for name, linear in student.linears.items():
        if not isinstance(linear, FactoredLinear) or (linking := traits_of(linear.form.name).linking) is None:
            continue
        factor, before = linear.get_parameter(linking), _before(linear, linking)
        gram: Matrix = np.zeros((factor.shape[1],) * 2)
        cross: Matrix = np.zeros((teacher.linears[name].get_parameter("weight").shape[0], len(gram)))
        with torch.no_grad():
            for mine, wanted in zip(torch.split(ours, 1), torch.split(theirs, 1), strict=True):
                x = student.input_of(name, mine).flatten(0, 1)
                missed = teacher.linears[name](teacher.input_of(name, wanted)).flatten(0, 1) - linear(x)
                z = x
                for matrix in before:
                    z = torch.nn.functional.linear(z, matrix)
                z = z.double()
                gram += (z.T @ z).numpy()
                cross += (missed.double().T @ z).numpy()
            factor.add_(torch.from_numpy(change(linear, cross, gram)))
        found[factor_name(name, linking)] = factor.detach().clone()
    return found


def _before(linear: FactoredLinear, linking: str) -> list[Tensor]:
    """Return the factors that are applied to an input before the linking factor."""
    chain = tuple(linear.form.factors)
    return [linear.get_parameter(suffix) for suffix in chain[: chain.index(linking)]]


def change(linear: FactoredLinear, cross: Matrix, gram: Matrix) -> Matrix:
    """Return the change of the linking factor that minimizes the error: `min_Δ E‖e − L Δ z‖²`.

    Args:
        linear: The student's linear; z is the linking factor's input, and L maps its output to the linear's output.
        cross: `Σ e zᵀ`, (out_features, rank), e the linear's error.
        gram: `Σ z zᵀ`, (rank, rank).
    """
    outputs = traits_of(linear.form.name).link_outputs(arrays(linear.state_dict()))
    if outputs.ndim == 1:  # indices: the factor's outputs are outputs of the linear
        return ridge_solve(cross[outputs], gram, RIDGE)
    return least_squares(outputs, ridge_solve(cross, gram, RIDGE))
