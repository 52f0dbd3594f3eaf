"""A start without gradients: each linking factor by least squares, from the student's inputs to the teacher's outputs.

One sweep of alternating least squares, a factor at a time while all others stay: the errors that the blocks before have
left in a linear's input are made up for, as far as this one factor can.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from curconvert.base.types import Matrix
from curconvert.blocks.modules import CURLinear, InterpolativeLinear
from curconvert.blocks.stream import Block
from curconvert.linalg.gram import least_squares, ridge_solve

Linking = CURLinear | InterpolativeLinear
RIDGE = 1e-2
"""λ of `G + λ diag(G)`, G the Gram matrix of `R x`: that of a conversion's metric. It holds to the factor that was."""


def solve_block(teacher: Block, student: Block, theirs: Tensor, ours: Tensor) -> dict[str, Tensor]:
    """Solve the linking factors of a block one after the other, each on what the student gives with those before it.

    Args:
        teacher: The original's block.
        student: The compressed model's; its U and T are changed.
        theirs: What enters the former, (sequences, tokens, hidden_size); one sequence must have gone through `embed`.
        ours: What enters the latter, the same shape.

    Returns:
        The factors by stored name, float32.
    """
    found = {}
    for name, linear in student.linears.items():
        if not isinstance(linear, Linking):
            continue
        factor = linear.U if isinstance(linear, CURLinear) else linear.T
        gram: Matrix = np.zeros((linear.R.shape[0],) * 2)
        cross: Matrix = np.zeros((teacher.linears[name].get_parameter("weight").shape[0], len(gram)))
        with torch.no_grad():
            for mine, wanted in zip(torch.split(ours, 1), torch.split(theirs, 1), strict=True):
                x = student.input_of(name, mine).flatten(0, 1)
                missed = teacher.linears[name](teacher.input_of(name, wanted)).flatten(0, 1) - linear(x)
                z = torch.nn.functional.linear(x, linear.R).double()
                gram += (z.T @ z).numpy()
                cross += (missed.double().T @ z).numpy()
            factor.add_(torch.from_numpy(change(linear, cross, gram)))
        suffix = "U" if isinstance(linear, CURLinear) else "T"
        found[f"{name.removesuffix('weight')}{suffix}"] = factor.detach().clone()
    return found


def change(linear: Linking, cross: Matrix, gram: Matrix) -> Matrix:
    """Return what must be added to U, or to T, to miss the least: `min_Δ E‖e − L Δ z‖²`, z = R x, L = C or the others.

    Args:
        linear: The student's.
        cross: `Σ e zᵀ`, (out_features, rank), of what the linear misses.
        gram: `Σ z zᵀ`, (rank, rank).
    """
    if isinstance(linear, CURLinear):
        return least_squares(linear.C.detach().double().numpy(), ridge_solve(cross, gram, RIDGE))
    computed = np.argsort(linear.order.numpy())[len(gram) :]  # outputs that are rows of T, in its order
    return ridge_solve(cross[computed], gram, RIDGE)
