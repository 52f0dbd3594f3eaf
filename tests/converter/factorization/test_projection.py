"""Biases that make up for the mean of what is lost, against least squares with an intercept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from curconvert.base.errors import InputError
from curconvert.base.plan import MatrixPlan
from curconvert.base.roles import Role
from curconvert.calibration.evidence import Evidence
from curconvert.factorization.modular import ModularOptions, factorize_mlp
from curconvert.factorization.projection import Projection
from curconvert.factorization.types import Factorization
from curconvert.methods.core.options import ConvertOptions
from support.matrices import Stored, random_weight, statistics_of, tasks_of

Matrix = NDArray[np.float64]
RANK = 6
FORMS = {"cur": "cur", "curing": "cur", "row-id": "interpolative", "pifa": "interpolative"}
FULL = ("cur", "row-id", "pifa", "svd-llm")
PAPERS = ("curing", "asvd", "fwsvd", "svd")


def tokens(seed: int, n: int = 18) -> Matrix:
    """Correlated inputs whose mean outweighs them."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((200, n)) @ rng.standard_normal((n, n)) + 15 * rng.standard_normal(n)


def layer(seed: int, m: int = 24, n: int = 18) -> tuple[torch.Tensor, torch.Tensor, Matrix]:
    return random_weight(seed, m, n), random_weight(seed + 1, m, 1)[:, 0], tokens(seed, n)


def factorize(
    method: str, weight: torch.Tensor, bias: torch.Tensor | None, x: Matrix, dtype: torch.dtype = torch.float64
) -> Factorization:
    """Factorize as a conversion does, without a ridge."""
    stored: Any = Stored({"x.weight": weight} if bias is None else {"x.weight": weight, "x.bias": bias})
    plan = MatrixPlan("x.weight", (24, 18), FORMS.get(method, "two_factor"), RANK)  # type: ignore[arg-type]
    options = ConvertOptions.for_method(method, rank=RANK, ridge=0.0)
    evidence: Any = SimpleNamespace(fisher_rows=lambda _: np.ones(24))
    (task,) = tasks_of(options, [plan], {"x.weight": statistics_of(x)}, stored, dtype, evidence)
    return task.run()["x.weight"]


def output_error(factors: Factorization, weight: torch.Tensor, bias: torch.Tensor, x: Matrix) -> float:
    """Relative root mean square over the tokens, bias and all."""
    W, b = weight.double().numpy(), bias.double().numpy()
    kept = factors.tensors.get("bias", bias).double().numpy()
    difference = (x @ W.T + b) - (x @ factors.product().numpy().T + kept)
    return float(np.linalg.norm(difference) / np.linalg.norm(x @ W.T))


def least_with_intercept(features: Matrix, outputs: Matrix) -> float:
    """Norm of what a least-squares fit with an intercept leaves."""
    system = np.column_stack([features, np.ones(len(features))])
    return float(np.linalg.norm(outputs - system @ np.linalg.lstsq(system, outputs, rcond=None)[0]))


def optimum(method: str, factors: Factorization, weight: Matrix, x: Matrix) -> float:
    """Least error of the form, relative: any subspace, or the chosen rows and columns."""
    y = x @ weight.T
    if method in ("pifa", "svd-llm"):
        left = np.linalg.norm(np.linalg.svd(y - y.mean(axis=0), compute_uv=False)[RANK:])
    else:
        kept = x @ weight[factors.tensors["rows"].numpy()].T
        if method == "cur":  # outputs are reached through the columns only
            C = weight[:, factors.tensors["cols"].numpy()]
            basis, _ = np.linalg.qr(C)
            y_in = y @ basis
            outside = np.linalg.norm((y - y.mean(axis=0)) @ (np.eye(len(C)) - basis @ basis.T))
            left = np.hypot(least_with_intercept(kept, y_in), outside)
        else:
            left = least_with_intercept(kept, y)
    return float(left / np.linalg.norm(y))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("method", FULL)
def test_factors_and_bias_are_the_best_together(method: str, seed: int) -> None:
    """Equal to NumPy's optimum, better than factors of the uncentered inputs, and what is reported."""
    weight, bias, x = layer(seed)
    found, without = factorize(method, weight, bias, x), factorize(method, weight, None, x)
    error = output_error(found, weight, bias, x)
    assert found.corrected_bias
    assert not without.corrected_bias
    assert error == pytest.approx(optimum(method, found, weight.numpy(), x), rel=1e-6)
    assert found.relative_output_error == pytest.approx(error, rel=1e-6)
    assert error < 0.98 * output_error(without, weight, bias, x)
    lost = weight.numpy() - found.product().numpy()
    np.testing.assert_allclose(found.tensors["bias"], bias.numpy() + lost @ x.mean(axis=0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", FULL)
def test_the_bias_makes_up_for_rounding_too(method: str, dtype: torch.dtype) -> None:
    """It is computed for the factors as they are stored; the reported error counts its own rounding."""
    weight, bias, x = layer(7)
    found = factorize(method, weight.to(dtype), bias.to(dtype), x, dtype)
    lost = weight.to(dtype).double().numpy() - found.product().numpy()
    expected = torch.from_numpy(bias.to(dtype).double().numpy() + lost @ x.mean(axis=0)).to(dtype)
    torch.testing.assert_close(found.tensors["bias"], expected, rtol=torch.finfo(dtype).eps, atol=0)
    error = output_error(found, weight.to(dtype), bias.to(dtype), x)
    assert found.relative_output_error == pytest.approx(error, rel=1e-6)


@pytest.mark.parametrize("method", PAPERS)
def test_the_papers_methods_keep_the_bias(method: str) -> None:
    """Factors are those of the layer without one."""
    weight, bias, x = layer(3)
    found, without = factorize(method, weight, bias, x), factorize(method, weight, None, x)
    assert "bias" not in found.tensors
    assert not found.corrected_bias
    assert all(torch.equal(found.tensors[suffix], without.tensors[suffix]) for suffix in without.tensors)


def test_the_mlps_bias_carries_the_mean_of_dropped_neurons() -> None:
    """Without a ridge down_proj and its bias are the least-squares fit with an intercept."""
    weight, bias, h = layer(5, 10, 18)
    x = statistics_of(tokens(6, 10))
    wide = {name: Projection(random_weight(8, 18, 10), x) for name in (Role.GATE, Role.UP)}
    neurons, found = np.arange(1, 17, 2, dtype=np.int32), {}
    for corrected in (bias, None):
        down = Projection(weight, statistics_of(h), corrected)
        mlp = factorize_mlp({**wide, Role.DOWN: down}, 8, ModularOptions(1e-3, 0.0), torch.float64, neurons)
        found[corrected is bias] = mlp[Role.DOWN]
    kept = h[:, neurons]
    y = h @ weight.numpy().T
    error = output_error(found[True], weight, bias, h)
    assert error == pytest.approx(least_with_intercept(kept, y) / np.linalg.norm(y), rel=1e-5)
    assert found[True].relative_output_error == pytest.approx(error, rel=1e-6)
    assert error < 0.98 * output_error(found[False], weight, bias, h)


def test_the_two_sided_optimum_is_centered_too(tmp_path: Path) -> None:
    """In the metric of the loss no rank-6 matrix with any bias does better."""
    weight, bias, x = layer(9)
    rng = np.random.default_rng(0)
    root = rng.standard_normal((24, 24))
    fisher = root @ root.T
    evidence = Evidence(tmp_path)
    evidence.save_statistics(["x.weight"], statistics_of(x))
    evidence.save_fisher("x.weight", fisher)
    stored: Any = Stored({"x.weight": weight, "x.bias": bias})
    plan = MatrixPlan("x.weight", (24, 18), "interpolative", RANK)
    options = ConvertOptions.for_method("auto", keep=0.5, ridge=0.0)
    (task,) = tasks_of(options, [plan], {}, stored, torch.float64, evidence)
    found = task.run()["x.weight"]
    metric = np.linalg.cholesky(fisher + 0.1 * np.mean(np.diag(fisher)) * np.eye(24))
    y = x @ weight.numpy().T
    difference = y + bias.numpy() - x @ found.product().numpy().T - found.tensors["bias"].numpy()
    best = np.linalg.svd((y - y.mean(axis=0)) @ metric, compute_uv=False)[RANK:]
    assert np.linalg.norm(difference @ metric) == pytest.approx(np.linalg.norm(best), rel=1e-6)


@pytest.mark.parametrize("method", FULL)
def test_constant_inputs_are_the_biass_business(method: str) -> None:
    """Whatever is constant is carried without a loss, and nothing is not finite."""
    weight, bias, x = layer(11)
    x[:, RANK:] = x[0, RANK:]
    found = factorize(method, weight, bias, x)
    assert all(torch.isfinite(tensor).all() for tensor in found.tensors.values())
    assert output_error(found, weight, bias, x) < 1e-6
    x[:] = x[0]
    assert output_error(factorize(method, weight, bias, x), weight, bias, x) < 1e-9


def test_a_damaged_bias_is_named() -> None:
    """By its own name, and as damage."""
    weight, bias, x = layer(12)
    bias[3] = torch.nan
    with pytest.raises(InputError, match=r"x\.bias: holds NaN or infinity"):
        factorize("cur", weight, bias, x)


def test_a_bias_that_overflows_the_dtype_is_refused() -> None:
    """The mean of what is lost may be large; the message names the way out."""
    weight, bias, x = layer(13)
    with pytest.raises(InputError, match=r"x\.weight: bias does not fit float16; choose --dtype"):
        factorize("svd-llm", weight * 10, bias, x + 1e5, torch.float16)
