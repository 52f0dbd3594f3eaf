"""The way from a planned matrix to its factors: dispatch on the form, and refusal of what would not be stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from curconvert.allocation.evidence import Evidence
from curconvert.artifact.safetensors_writer import not_finite
from curconvert.blocks.heads import Heads
from curconvert.calibration.statistics import InputStatistics
from curconvert.checkpoint.types import Checkpoint
from curconvert.errors import BackendError, InputError
from curconvert.factorization.attention_modules import factorize_query_key, factorize_value_output
from curconvert.factorization.cur import CUROptions, Link, factorize_cur
from curconvert.factorization.gram import ridged
from curconvert.factorization.interpolative import factorize_interpolative, interpolative_from
from curconvert.factorization.modular import Indices, ModularOptions, factorize_mlp
from curconvert.factorization.projection import Projection, with_bias
from curconvert.factorization.shared import factorize_shared
from curconvert.factorization.two_factor import Approximation, factorize_two_factor
from curconvert.factorization.two_sided import DAMPING, damped, two_sided
from curconvert.factorization.types import Basis, Factorization
from curconvert.options import ConvertOptions
from curconvert.planning import MatrixPlan, bias_of, linear_of
from curconvert.selection.indices import Importance, Selector
from curconvert_runtime.forms import MODULAR, SPARSE

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

    A bias beside it makes up for the mean of what is lost, where the method approximates in the full metric.

    Args:
        plan: Of the matrix.
        checkpoint: Its weight and bias.
        statistics: Of its input.
        options: Method and numerics.
        dtype: Deployed dtype.
        fisher_rows: Fisher information of each row, (out_features,); `fwsvd` only.

    Raises:
        InputError: The weight or its statistics are not finite, or the weight or U does not fit the deployed dtype.
        BackendError: A LAPACK routine did not converge.
    """
    projection = _read(plan.name, checkpoint, statistics, dtype, corrected=options.full_metric)
    with _lapack(plan.name):
        factors = _factorize(plan, projection, options, dtype, fisher_rows)
    return _stored(plan.name, factors, projection, dtype)


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
        if plan.shared is not None:
            found[plan.name] = _factorize_shared(plan, evidence, checkpoint, options, dtype)
        elif plan.form == "interpolative" and plan.rank is not None:
            projection = _read(plan.name, checkpoint, evidence.statistics(plan.name), dtype)
            with _lapack(plan.name):
                metric = projection.metric
                gram, fisher = ridged(metric.gram, options.ridge), damped(evidence.fisher(plan.name), DAMPING)
                best = two_sided(projection.weight.to(torch.float64).numpy(), gram, fisher).factors(plan.rank)
                factors = interpolative_from(projection.weight, *best, metric, dtype)
            found[plan.name] = _stored(plan.name, factors, projection, dtype)
    mlp = [plan for plan in plans if plan.form in MODULAR.values()]
    if mlp:
        inputs = {plan.name: evidence.statistics(plan.name) for plan in mlp}
        (down,) = (plan for plan in mlp if plan.form == "modular_columns")
        assert down.rank is not None
        kept = evidence.kept(down.name, down.rank)
        chosen = replace(options, ridge=evidence.ridge(down.name))
        found |= factorize_mlp_checked(mlp, inputs, checkpoint, chosen, dtype, kept)
    return found


def _factorize_shared(
    plan: MatrixPlan, evidence: Evidence, checkpoint: Checkpoint, options: ConvertOptions, dtype: torch.dtype
) -> Factorization:
    """Factorize both matrices of a pair, and return the planned one's factors: with the same numbers at either block.

    So nothing has to be kept from one block to the next.
    """
    assert plan.shared is not None
    assert plan.rank is not None
    names = plan.shared.matrices
    projections = [_read(name, checkpoint, evidence.statistics(name), dtype) for name in names]
    with _lapack(plan.name):
        fishers = [evidence.fisher(name) for name in names]
        pair = factorize_shared(projections, fishers, plan.rank, options.ridge, dtype)
    own = names.index(plan.name)
    return _stored(plan.name, pair[own], projections[own], dtype)


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
    projections = {linear: _read(name, checkpoint, statistics[name], dtype) for linear, name in names.items()}
    ridges = ModularOptions(leverage_ridge=options.ridge, ridge=options.ridge)
    with _lapack(names["down_proj"]):
        found = factorize_mlp(projections, ranks.pop(), ridges, dtype, kept)
    return _named(found, names, dtype)


def factorize_modules_checked(
    plans: Sequence[MatrixPlan],
    statistics: Mapping[str, InputStatistics],
    checkpoint: Checkpoint,
    heads: Heads | None,
    options: ConvertOptions,
    dtype: torch.dtype,
) -> dict[str, Factorization]:
    """Factorize what gets smaller together: the linears of an MLP, queries with keys, values with outputs.

    Args:
        plans: Of one block's matrices in a modular or sparse form.
        statistics: Of each one's input, by its name.
        checkpoint: Weights and biases.
        heads: The layer's; None where no form is sparse.
        options: Its ridge.
        dtype: Deployed dtype.

    Returns:
        By the matrices' names.

    Raises:
        InputError: The plan takes a part of a module, or different sizes from its parts, or as `factorize_checked`.
        BackendError: A LAPACK routine did not converge.
    """
    mlp = [plan for plan in plans if plan.form in MODULAR.values()]
    found = factorize_mlp_checked(mlp, statistics, checkpoint, options, dtype) if mlp else {}
    sparse = {linear_of(plan.name): plan for plan in plans if plan.form in SPARSE.values()}
    names = {linear: plan.name for linear, plan in sparse.items()}
    projections = {linear: _read(name, checkpoint, statistics[name], dtype) for linear, name in names.items()}
    for first, second in (("q_proj", "k_proj"), ("v_proj", "o_proj")):
        if not sparse.keys() & {first, second}:
            continue
        assert heads is not None
        sizes = {(sparse[x].rank or 0) / heads.count(x) if x in sparse else 0 for x in (first, second)}
        kept = int(min(sizes))
        if sizes != {kept}:
            raise InputError(f"{plans[0].name}: {first} and {second} must keep as many dimensions of each head")
        with _lapack(names[first]):
            if first == "q_proj":
                parts = factorize_query_key(projections, heads, kept, dtype)
            else:
                parts = factorize_value_output(projections, heads, kept, options.ridge, dtype)
        found |= _named(parts, names, dtype)
    return found


def _named(
    found: Mapping[str, Factorization], names: Mapping[str, str], dtype: torch.dtype
) -> dict[str, Factorization]:
    """Check a module's factors, and return them by weight name."""
    for linear, factors in found.items():
        _check_fit(names[linear], factors, dtype)
    return {names[linear]: factors for linear, factors in found.items()}


def _read(
    name: str, checkpoint: Checkpoint, statistics: InputStatistics, dtype: torch.dtype, *, corrected: bool = True
) -> Projection:
    """Read a linear, refusing numbers that are not finite; without its bias where that is not to be corrected."""
    parts = {part: checkpoint.read(part) for part in (name, bias_of(name)) if part in checkpoint.tensors}
    for part, tensor in parts.items():
        if not bool(torch.isfinite(tensor.to(dtype)).all()):
            raise InputError(not_finite(part, tensor, dtype))
    if not np.isfinite(statistics.gram).all():
        raise InputError(f"{name}: its inputs overflow on the calibration text; the checkpoint is damaged before it")
    return Projection(parts[name], statistics, parts.get(bias_of(name)) if corrected else None)


def _stored(name: str, factors: Factorization, projection: Projection, dtype: torch.dtype) -> Factorization:
    """Complete factors with their bias, refusing values that do not fit the deployed dtype."""
    factors = with_bias(factors, projection, dtype)
    _check_fit(name, factors, dtype)
    return factors


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
    projection: Projection,
    options: ConvertOptions,
    dtype: torch.dtype,
    fisher_rows: Vector | None,
) -> Factorization:
    """Dispatch on the form; ConvertOptions has checked that the choices belong to it."""
    name, rank, weight, statistics = plan.name, plan.rank, projection.weight, projection.metric
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
