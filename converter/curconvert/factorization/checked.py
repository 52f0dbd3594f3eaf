"""The way from a planned matrix to its factors: dispatch on the form, and refusal of what would not be stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from curconvert.allocation.evidence import Evidence
from curconvert.artifact.safetensors_writer import not_finite
from curconvert.calibration.statistics import InputStatistics
from curconvert.checkpoint.types import Checkpoint
from curconvert.errors import BackendError, InputError
from curconvert.factorization.cur import CUROptions, Link, factorize_cur
from curconvert.factorization.gram import ridged
from curconvert.factorization.interpolative import factorize_interpolative, interpolative_from
from curconvert.factorization.modular import Indices, ModularOptions, Projection, factorize_mlp
from curconvert.factorization.two_factor import Approximation, factorize_two_factor
from curconvert.factorization.two_sided import DAMPING, damped, two_sided
from curconvert.factorization.types import Basis, Factorization
from curconvert.options import ConvertOptions
from curconvert.planning import MatrixPlan, linear_of
from curconvert.selection.indices import Importance, Selector
from curconvert_runtime.forms import MODULAR

Vector = NDArray[np.float64]


def factorize_checked(
    plan: MatrixPlan,
    checkpoint: Checkpoint,
    statistics: InputStatistics,
    options: ConvertOptions,
    dtype: torch.dtype,
    fisher_rows: Vector | None = None,
) -> Factorization:
    """Factorize one weight, refusing values that would make every later number meaningless.

    Args:
        plan: Of the matrix.
        checkpoint: Its weight.
        statistics: Of its input.
        options: Method and numerics.
        dtype: Deployed dtype.
        fisher_rows: Fisher information of each row, (out_features,); `fwsvd` only.

    Raises:
        InputError: The weight or its statistics are not finite, or the weight or U does not fit the deployed dtype.
        BackendError: A LAPACK routine did not converge.
    """
    weight = checkpoint.read(plan.name)
    _check_input(plan.name, weight, statistics, dtype)
    with _lapack(plan.name):
        factors = _factorize(plan, weight, statistics, options, dtype, fisher_rows)
    _check_fit(plan.name, factors, dtype)
    return factors


def factorize_allocated(
    plans: Sequence[MatrixPlan],
    evidence: Evidence,
    checkpoint: Checkpoint,
    options: ConvertOptions,
    dtype: torch.dtype,
) -> dict[str, Factorization]:
    """Factorize one block's matrices as an allocation planned them.

    Args:
        plans: Of the block's compressed matrices.
        evidence: Statistics of the original.
        checkpoint: Weights and biases.
        options: Its ridge.
        dtype: Deployed dtype.

    Returns:
        By the matrices' names.

    Raises:
        InputError: As `factorize_checked`.
        BackendError: A LAPACK routine did not converge.
    """
    found = {}
    for plan in plans:
        if plan.form == "interpolative" and plan.rank is not None:
            weight, statistics = checkpoint.read(plan.name), evidence.statistics(plan.name)
            _check_input(plan.name, weight, statistics, dtype)
            with _lapack(plan.name):
                gram = ridged(statistics.gram, options.ridge)
                fisher = damped(evidence.fisher(plan.name), DAMPING)
                best = two_sided(weight.to(torch.float64).numpy(), gram, fisher).factors(plan.rank)
                found[plan.name] = interpolative_from(weight, *best, statistics, dtype)
            _check_fit(plan.name, found[plan.name], dtype)
    mlp = [plan for plan in plans if plan.form in MODULAR.values()]
    if mlp:
        inputs = {plan.name: evidence.statistics(plan.name) for plan in mlp}
        (kept,) = (
            evidence.kept(plan.name, plan.rank)
            for plan in mlp
            if plan.form == "modular_columns" and plan.rank is not None
        )
        found |= factorize_mlp_checked(mlp, inputs, checkpoint, options, dtype, kept)
    return found


def factorize_mlp_checked(
    plans: Sequence[MatrixPlan],
    statistics: Mapping[str, InputStatistics],
    checkpoint: Checkpoint,
    options: ConvertOptions,
    dtype: torch.dtype,
    kept: Indices | None = None,
) -> dict[str, Factorization]:
    """Factorize the three linears of one MLP together.

    Args:
        plans: Of one block's matrices in a modular form.
        statistics: Of each one's input, by its name.
        checkpoint: Weights and biases.
        options: Its ridge.
        dtype: Deployed dtype.
        kept: Neurons to keep, ascending; None decides by ridge leverage.

    Returns:
        By the matrices' names.

    Raises:
        InputError: The plan does not take the same number of neurons from all three, or as `factorize_checked`.
        BackendError: A LAPACK routine did not converge.
    """
    names = {linear_of(plan.name): plan.name for plan in plans}
    ranks = {plan.rank for plan in plans if plan.rank is not None}
    if {linear_of(plan.name): plan.form for plan in plans} != MODULAR or len(ranks) != 1:
        raise InputError(f"{plans[0].name}: a smaller MLP needs {', '.join(MODULAR)}, all planned with one rank")
    projections = {}
    for linear, name in names.items():
        bias = f"{name.removesuffix('weight')}bias"
        weight = checkpoint.read(name)
        _check_input(name, weight, statistics[name], dtype)
        projections[linear] = Projection(
            weight, statistics[name], checkpoint.read(bias) if bias in checkpoint.tensors else None
        )
    ridges = ModularOptions(leverage_ridge=options.ridge, ridge=options.ridge)
    with _lapack(names["down_proj"]):
        found = factorize_mlp(projections, ranks.pop(), ridges, dtype, kept)
    for linear, factors in found.items():
        _check_fit(names[linear], factors, dtype)
    return {names[linear]: factors for linear, factors in found.items()}


def _check_input(name: str, weight: Tensor, statistics: InputStatistics, dtype: torch.dtype) -> None:
    if not bool(torch.isfinite(weight.to(dtype)).all()):
        raise InputError(not_finite(name, weight, dtype))
    if not np.isfinite(statistics.gram).all():
        raise InputError(f"{name}: its inputs overflow on the calibration text; the checkpoint is damaged before it")


@contextmanager
def _lapack(name: str) -> Iterator[None]:
    try:
        yield
    except np.linalg.LinAlgError as error:
        raise BackendError(f"{name}: LAPACK failed ({error}); try another --method or --select") from error


def _check_fit(name: str, factors: Factorization, dtype: torch.dtype) -> None:
    for suffix, tensor in factors.tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{name}: {suffix} does not fit {str(dtype)[6:]}; choose --dtype bfloat16 or float32")


def _factorize(
    plan: MatrixPlan,
    weight: Tensor,
    statistics: InputStatistics,
    options: ConvertOptions,
    dtype: torch.dtype,
    fisher_rows: Vector | None,
) -> Factorization:
    """Dispatch on the form; ConvertOptions has checked that the choices belong to it."""
    name, rank = plan.name, plan.rank
    assert rank is not None
    if options.form == "interpolative":
        basis = cast("Basis", options.approximation)
        return factorize_interpolative(name, weight, statistics, rank, basis, options.ridge, dtype)
    if options.form == "two_factor":
        approximation = cast("Approximation", options.approximation)
        return factorize_two_factor(name, weight, statistics, rank, approximation, options.ridge, dtype, fisher_rows)
    cur = CUROptions(
        selector=cast("Selector", options.selector),
        importance=cast("Importance", options.importance),
        link=cast("Link", options.link),
        ridge=options.ridge,
        seed=options.seed,
    )
    return factorize_cur(name, weight, statistics, rank, cur, dtype)
