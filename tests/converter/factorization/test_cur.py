"""The linking matrix against least squares of its definition; errors, bound and slices of a whole factorization."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from curconvert.base.errors import InputError
from curconvert.base.plan import MatrixPlan
from curconvert.factorization.cur import CUROptions, factorize_cur, link_matrix
from curconvert.factorization.types import Factorization, Problem
from curconvert.linalg.chunked import ChunkedMatrix
from curconvert.linalg.statistics import InputStatistics
from curconvert.methods.core.options import ConvertOptions
from support.matrices import Stored, correlated, metric_of, statistics_of, tasks_of

Matrix = NDArray[np.float64]


def problem(seed: int, m: int = 9, n: int = 11, r: int = 4) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """W, C, R and a well-conditioned Gram matrix."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((m, n))
    inputs = rng.standard_normal((5 * n, n)) * rng.uniform(0.2, 3, n)
    return W, W[:, rng.permutation(n)[:r]], W[rng.permutation(m)[:r]], inputs.T @ inputs / len(inputs)


def factorized(
    weight: torch.Tensor,
    statistics: InputStatistics,
    rank: int,
    options: CUROptions,
    dtype: torch.dtype,
    form: str = "cur",
) -> Factorization:
    return factorize_cur(Problem("x.weight", weight, statistics, rank, dtype, form), options)


def square_root(gram: Matrix) -> Matrix:
    values, vectors = np.linalg.eigh(gram)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T)


def vectorized(W: Matrix, C: Matrix, R: Matrix, gram: Matrix) -> Matrix:
    """Solve min ‖(W − CUR) H^½‖ as one long least-squares problem."""
    root = square_root(gram)
    system = np.kron(C, (R @ root).T)  # row-major vec(C U R H^½)
    solution = np.linalg.lstsq(system, (W @ root).ravel(), rcond=1e-12)[0]
    return np.asarray(solution.reshape(C.shape[1], R.shape[0]))


def link(W: Matrix, C: Matrix, R: Matrix, gram: Matrix | None) -> Matrix:
    """The closed form, in the metric of a Gram matrix."""
    return link_matrix(ChunkedMatrix(torch.from_numpy(W)), C, R, None if gram is None else metric_of(gram))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("metric", ["plain", "diagonal", "full"])
def test_link_equals_the_vectorized_least_squares(seed: int, metric: str) -> None:
    """The closed form is the minimizer in each metric."""
    W, C, R, gram = problem(seed)
    H = {"plain": None, "diagonal": np.diag(np.diag(gram)), "full": gram}[metric]
    expected = vectorized(W, C, R, np.eye(W.shape[1]) if H is None else H)
    np.testing.assert_allclose(link(W, C, R, H), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_output_importance_takes_the_rows_that_predict_the_others(seed: int) -> None:
    """Rows are chosen greedily: each time the one that those before it leave with the largest output error."""
    weight, stats = random_weight(seed, 24, 18, torch.float64).numpy(), correlated(seed)
    options = CUROptions(selector="qr", importance="output", link="full", ridge=1e-2, seed=0)
    factors = factorized(torch.from_numpy(weight), stats, 7, options, torch.float64)
    left = weight @ np.linalg.cholesky(stats.gram + 1e-2 * np.diag(np.diag(stats.gram)))
    expected: list[int] = []
    for _ in range(7):
        norms = (left**2).sum(axis=1)
        expected.append(int(norms.argmax()))
        direction = left[expected[-1]] / np.linalg.norm(left[expected[-1]])
        left = left - np.outer(left @ direction, direction)
    assert factors.tensors["rows"].tolist() == expected


@pytest.mark.parametrize("seed", range(4))
def test_link_satisfies_the_normal_equations(seed: int) -> None:
    """The residual is orthogonal to C on the left and to R in the metric on the right."""
    W, C, R, gram = problem(seed, 30, 20, 7)
    residual = W - C @ link(W, C, R, gram) @ R
    assert np.abs(C.T @ residual @ gram @ R.T).max() < 1e-9


def test_no_perturbation_of_the_link_is_better() -> None:
    """A minimum, not only a stationary point."""
    W, C, R, gram = problem(0)
    root, rng = square_root(gram), np.random.default_rng(0)
    U = link(W, C, R, gram)

    def error(candidate: Matrix) -> float:
        return float(np.linalg.norm((W - C @ candidate @ R) @ root))

    for scale in (1e-3, 1e-1, 1.0):
        for _ in range(20):
            assert error(U + scale * rng.standard_normal(U.shape)) > error(U)


def singular_cases() -> dict[str, tuple[Matrix, Matrix, Matrix, Matrix]]:
    W, C, R, gram = problem(1)
    low = np.outer(W[:, 0], W[0])
    dead = gram.copy()
    dead[3:, :] = dead[:, 3:] = 0
    return {
        "repeated column": (W, C[:, [0, 0, 1, 2]], R, gram),
        "repeated row": (W, C, R[[0, 0, 1, 2]], gram),
        "rank-1 weight": (low, low[:, :4], low[:4], gram),
        "zero weight": (W * 0, C * 0, R * 0, gram),
        "dead inputs": (W, C, R, dead),
        "no input at all": (W, C, R, gram * 0),
    }


@pytest.mark.parametrize("case", singular_cases())
def test_singular_problems_have_the_least_norm_solution(case: str) -> None:
    """Rank-deficient factors and metrics give a finite U that is as good as the best and no larger."""
    W, C, R, gram = singular_cases()[case]
    root = square_root(gram)
    U, best = link(W, C, R, gram), vectorized(W, C, R, gram)
    assert np.isfinite(U).all()
    error, least = (np.linalg.norm((W - C @ u @ R) @ root) for u in (U, best))
    assert error <= least + 1e-7 * (1 + np.linalg.norm(W @ root))
    assert np.linalg.norm(U) <= 10 * np.linalg.norm(best) + 1e-9


def statistics(seed: int, n: int) -> InputStatistics:
    x = np.random.default_rng(seed).standard_normal((4 * n, n)) * np.linspace(0.3, 3, n)
    return statistics_of(x)


def options(**values: Any) -> CUROptions:
    return CUROptions(
        **{
            "selector": "deim",
            "importance": "weight",
            "link": "plain",
            "ridge": 1e-2,
            "seed": 0,
            "exact_svd": True,
            **values,
        }
    )


def random_weight(seed: int, m: int = 24, n: int = 18, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn((m, n), generator=torch.Generator().manual_seed(seed)).to(dtype)


def dense_product(factors: Factorization) -> Matrix:
    c, u, r = (factors.tensors[key].double().numpy() for key in ("C", "U", "R"))
    return np.asarray(c @ u @ r)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("link", ["plain", "diagonal", "full"])
def test_reported_errors_equal_their_definitions(link: str, dtype: torch.dtype) -> None:
    """Both errors are those of the factors as stored, rounding included."""
    weight, stats = random_weight(0), statistics(0, 18)
    factors = factorized(weight, stats, 6, options(link=link), dtype)
    W, root = weight.double().numpy(), square_root(stats.gram)
    error = W - dense_product(factors)
    assert factors.relative_frobenius_error == pytest.approx(np.linalg.norm(error) / np.linalg.norm(W), rel=1e-9)
    expected = np.linalg.norm(error @ root) / np.linalg.norm(W @ root)
    assert factors.relative_output_error == pytest.approx(expected, rel=1e-6)


def test_the_full_link_has_the_smallest_output_error() -> None:
    """Same rows and columns: the better the metric, the smaller the error that matters."""
    weight, stats = random_weight(1), statistics(1, 18)
    errors = [
        factorized(weight, stats, 6, options(link=link, ridge=0.0), torch.float64).relative_output_error
        for link in ("full", "diagonal", "plain")
    ]
    assert errors[0] < min(errors[1:])


def test_the_ridge_weighs_the_diagonal_of_the_gram_matrix() -> None:
    """`full` minimizes in H + λ diag(H)."""
    weight, stats = random_weight(2), statistics(2, 18)
    factors = factorized(weight, stats, 5, options(link="full", ridge=0.3), torch.float64)
    W, C, R = (t.double().numpy() for t in (weight, factors.tensors["C"], factors.tensors["R"]))
    expected = vectorized(W, C, R, stats.gram + 0.3 * np.diag(np.diag(stats.gram)))
    np.testing.assert_allclose(factors.tensors["U"].numpy(), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("seed", range(6))
def test_the_certificate_holds_for_deim_on_the_weight_itself(seed: int) -> None:
    """‖W − CUR‖₂ ≤ (η_p + η_q) σ_{r+1}, with the plain link."""
    weight = random_weight(seed, 30, 20)
    factors = factorized(weight, statistics(seed, 20), 8, options(), torch.float64)
    assert factors.bound is not None
    assert factors.bound.matrix == "W"
    assert np.linalg.norm(weight.double().numpy() - dense_product(factors), 2) <= factors.bound.value


@pytest.mark.parametrize("selector", ["qdeim", "qr", "lu", "leverage", "random"])
def test_only_exact_deim_certifies(selector: str) -> None:
    """The theorem is about DEIM points."""
    factors = factorized(random_weight(0), statistics(0, 18), 5, options(selector=selector), torch.float32)
    assert factors.bound is None


@pytest.mark.parametrize("form", ["two_factor", "interpolative"])
def test_another_form_stores_the_same_product(form: str) -> None:
    """Up to rounding in float64; folded keeps the real rows, and both the certificate."""
    weight = random_weight(4, 30, 20)
    found = factorized(weight, statistics(4, 20), 8, options(), torch.float64, form)
    same = factorized(weight, statistics(4, 20), 8, options(), torch.float64)
    np.testing.assert_allclose(found.product().numpy(), same.product().numpy(), atol=1e-10)
    assert (found.form, found.bound) == (form, same.bound)
    assert found.relative_output_error == pytest.approx(same.relative_output_error, rel=1e-6)
    if form == "two_factor":
        assert torch.equal(found.tensors["B"], same.tensors["R"])


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_c_and_r_are_slices_of_the_source_bit_for_bit(stored: torch.dtype, dtype: torch.dtype) -> None:
    """After the cast to the deployed dtype nothing but selection happens to them."""
    weight = random_weight(3, dtype=stored)
    factors = factorized(weight, statistics(3, 18), 6, options(selector="qr"), dtype)
    rows, columns = (factors.tensors[key].tolist() for key in ("rows", "cols"))
    assert {factors.tensors[key].dtype for key in "CUR"} == {dtype}
    assert torch.equal(
        factors.tensors["C"].view(torch.uint8), weight.to(dtype)[:, columns].contiguous().view(torch.uint8)
    )
    assert torch.equal(factors.tensors["R"].view(torch.uint8), weight.to(dtype)[rows].contiguous().view(torch.uint8))


def test_full_rank_factors_of_a_low_rank_matrix_are_exact() -> None:
    """A rank-5 matrix is C U R at rank 5, whatever the inputs."""
    weight = random_weight(4, 24, 5, torch.float64) @ random_weight(5, 5, 18, torch.float64)
    factors = factorized(weight, statistics(4, 18), 5, options(selector="qr", link="full"), torch.float64)
    assert factors.relative_frobenius_error < 1e-10


def test_a_zero_weight_has_zero_error() -> None:
    """No division by its norm."""
    factors = factorized(torch.zeros(24, 18), statistics(0, 18), 5, options(), torch.float32)
    assert (factors.relative_frobenius_error, factors.relative_output_error) == (0.0, 0.0)


def checked(weight: torch.Tensor, statistics: InputStatistics, dtype: torch.dtype) -> Factorization:
    """Factorize as a conversion by `curing` does."""
    plan = MatrixPlan("x.weight", (24, 18), "cur", 5)
    stored: Any = Stored({"x.weight": weight})
    (task,) = tasks_of(ConvertOptions.for_method("curing"), [plan], {"x.weight": statistics}, stored, dtype)
    return task.run()["x.weight"]


def test_a_link_that_overflows_the_dtype_is_refused() -> None:
    """Tiny weights need a U that float16 cannot hold; the message names the tensor and the way out."""
    weight = random_weight(6) * 1e-6
    with pytest.raises(InputError, match=r"x\.weight: U does not fit float16; choose --dtype"):
        checked(weight, statistics(6, 18), torch.float16)


@pytest.mark.parametrize("dtype, value", [(torch.float16, 1e6), (torch.float16, -7e4), (torch.bfloat16, 3.4e38)])
def test_a_weight_that_overflows_the_dtype_is_refused(dtype: torch.dtype, value: float) -> None:
    """An entry too large for the deployed dtype is named as such, not as damage."""
    weight = random_weight(7)
    weight[2, 3] = value
    with pytest.raises(InputError, match=r"x\.weight: .*does not fit b?float16; choose --dtype"):
        checked(weight, statistics(7, 18), dtype)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_damaged_weight_is_refused(value: float) -> None:
    """Neither NaN nor infinity reaches LAPACK."""
    weight = random_weight(8)
    weight[1, 1] = value
    with pytest.raises(InputError, match=r"x\.weight: holds NaN or infinity"):
        checked(weight, statistics(8, 18), torch.float32)


def test_inputs_that_overflow_are_refused() -> None:
    """A Gram matrix that is not finite means damage further up."""
    stats = InputStatistics(np.full((18, 18), np.inf), 10, np.full(18, np.inf))
    with pytest.raises(InputError, match=r"x\.weight: its inputs overflow"):
        checked(random_weight(9), stats, torch.float32)
