"""Rows and columns: every selector against its definition, and on matrices that break careless code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from curconvert.linalg.chunked import ChunkedMatrix
from curconvert.options.choices import SELECTORS
from curconvert.selection.indices import Selection, deim, importance_matrix, select_rows_columns, tensor_rng

Matrix = NDArray[np.float64]


def plain_deim(basis: Matrix) -> list[int]:
    """The greedy algorithm as Sorensen and Embree print it."""
    points = [int(np.argmax(np.abs(basis[:, 0])))]
    for k in range(1, basis.shape[1]):
        coefficients = np.linalg.solve(basis[points, :k], basis[points, k])
        residual = basis[:, k] - basis[:, :k] @ coefficients
        points.append(int(np.argmax(np.abs(residual))))
    return points


def random_basis(seed: int, size: int, rank: int) -> Matrix:
    basis: Matrix = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, rank)))[0]
    return basis


def decaying_matrix(seed: int, m: int = 40, n: int = 30, rate: float = 0.6) -> Matrix:
    rng = np.random.default_rng(seed)
    k = min(m, n)
    left, right = (np.linalg.qr(rng.standard_normal((size, k)))[0] for size in (m, n))
    return np.asarray(left * rate ** np.arange(k) @ right.T)


def choose(
    matrix: Matrix, rank: int, selector: str, name: str = "x", seed: int = 0, *, exact_svd: bool = False
) -> Selection:
    chunked, rng = ChunkedMatrix(torch.from_numpy(matrix)), tensor_rng(seed, name)
    return select_rows_columns(chunked, rank, selector, rng, exact_svd=exact_svd)  # type: ignore[arg-type]


@pytest.mark.parametrize("size, rank", [(5, 1), (30, 7), (64, 64), (200, 50)])
@pytest.mark.parametrize("seed", range(5))
def test_deim_is_the_greedy_algorithm_on_random_bases(seed: int, size: int, rank: int) -> None:
    """The LU pivots are the greedy points, in order."""
    basis = random_basis(seed, size, rank)
    assert deim(basis).tolist() == plain_deim(basis)


@pytest.mark.parametrize("rate", [0.9, 0.5, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_deim_is_the_greedy_algorithm_on_singular_bases(seed: int, rate: float) -> None:
    """The same for singular vectors of a matrix with decaying singular values, both sides, through the selector."""
    matrix = decaying_matrix(seed, rate=rate)
    left, _, right = np.linalg.svd(matrix)
    # Trailing vectors of a tiny singular value are rounding noise that two SVDs need not share.
    rank = 10 if rate > 0.1 else 6
    chosen = choose(matrix, rank, "deim")
    assert chosen.rows.tolist() == plain_deim(left[:, :rank])
    assert chosen.columns.tolist() == plain_deim(right[:rank].T)


def test_deim_does_not_depend_on_the_signs_of_the_vectors() -> None:
    """Singular vectors are defined up to their sign."""
    basis = random_basis(3, 50, 12)
    signs = np.where(np.arange(12) % 2, -1.0, 1.0)
    assert deim(basis).tolist() == deim(basis * signs).tolist()


def test_deim_reports_the_numbers_of_its_bound() -> None:
    """η_p, η_q and σ_{r+1} equal their definitions."""
    matrix = decaying_matrix(1)
    chosen = choose(matrix, 6, "deim", exact_svd=True)
    left, sigma, right = np.linalg.svd(matrix)
    assert chosen.sigma_next == pytest.approx(sigma[6], rel=1e-9)
    assert chosen.eta_rows == pytest.approx(np.linalg.norm(np.linalg.inv(left[chosen.rows, :6]), 2), rel=1e-9)
    assert chosen.eta_columns == pytest.approx(np.linalg.norm(np.linalg.inv(right[:6, chosen.columns]), 2), rel=1e-9)


def test_the_bound_of_a_full_rank_choice_is_zero() -> None:
    """Nothing follows the last singular value."""
    assert choose(decaying_matrix(1, 9, 6), 6, "deim", exact_svd=True).sigma_next == 0.0


def greedy_columns(matrix: Matrix, count: int) -> list[int]:
    """Column pivoting by its definition: take the largest column, project it out, repeat."""
    rest, taken = matrix.copy(), []
    for _ in range(count):
        best = int(np.argmax((rest**2).sum(axis=0)))
        taken.append(best)
        direction = rest[:, best] / np.linalg.norm(rest[:, best])
        rest = rest - np.outer(direction, direction @ rest)
    return taken


def test_qdeim_takes_the_pivots_of_the_transposed_basis() -> None:
    """Q-DEIM is column-pivoted QR of the singular basis' transpose."""
    matrix = decaying_matrix(2)
    left, _, right = np.linalg.svd(matrix)
    chosen = choose(matrix, 7, "qdeim")
    assert chosen.rows.tolist() == greedy_columns(left[:, :7].T, 7)
    assert chosen.columns.tolist() == greedy_columns(right[:7], 7)


def test_leverage_takes_the_largest_row_norms_of_the_basis() -> None:
    """The scores are squared row norms, and the largest come first."""
    matrix = decaying_matrix(4)
    left, _, right = np.linalg.svd(matrix)
    chosen = choose(matrix, 7, "leverage")
    assert chosen.rows.tolist() == np.argsort(-np.linalg.norm(left[:, :7], axis=1))[:7].tolist()
    assert chosen.columns.tolist() == np.argsort(-np.linalg.norm(right[:7], axis=0))[:7].tolist()


def test_qr_without_room_for_a_sketch_is_column_pivoting_of_the_matrix() -> None:
    """A matrix smaller than its sketch is not sketched."""
    matrix = np.random.default_rng(5).standard_normal((20, 25))
    chosen = choose(matrix, 8, "qr")
    assert chosen.columns.tolist() == greedy_columns(matrix, 8)
    assert chosen.rows.tolist() == greedy_columns(matrix.T, 8)


def test_qr_of_a_sketch_spans_an_exactly_low_rank_matrix() -> None:
    """Rows and columns found through the sketch carry all of a rank-6 matrix."""
    rng = np.random.default_rng(6)
    matrix = rng.standard_normal((300, 6)) @ rng.standard_normal((6, 200))
    chosen = choose(matrix, 6, "qr")
    c, r = matrix[:, chosen.columns], matrix[chosen.rows]
    rebuilt = c @ np.linalg.pinv(c) @ matrix @ np.linalg.pinv(r) @ r
    assert np.linalg.norm(matrix - rebuilt) < 1e-9 * np.linalg.norm(matrix)


def greedy_rows(matrix: Matrix) -> list[int]:
    """Partial pivoting by its definition: the row of the largest entry of each column, after what went before."""
    rest, taken = matrix.astype(np.float64), []
    for k in range(matrix.shape[1]):
        best = int(np.argmax(np.abs(rest[:, k])))
        taken.append(best)
        rest -= np.outer(rest[:, k] / rest[best, k], rest[best])
        rest[best] = 0.0
    return taken


def test_lu_takes_columns_from_a_sketch_and_rows_from_these_columns() -> None:
    """Randomized LUPP, with the Gaussian matrix that the tensor's name and the seed stand for."""
    matrix = np.random.default_rng(9).standard_normal((60, 45))
    sketch = tensor_rng(0, "x").standard_normal((7, 60), dtype=np.float32) @ matrix
    chosen = choose(matrix, 7, "lu")
    assert chosen.columns.tolist() == greedy_rows(sketch.T)
    assert chosen.rows.tolist() == greedy_rows(matrix[:, chosen.columns])


@pytest.mark.parametrize("selector", ["lu", "qr", "qdeim", "deim"])
def test_careful_selectors_come_close_to_the_best_approximation(selector: str) -> None:
    """Projection on the chosen columns is within a small factor of the truncated SVD, sketch included."""
    matrix = decaying_matrix(7, 150, 120, rate=0.8)
    columns = matrix[:, choose(matrix, 10, selector).columns]
    error = np.linalg.norm(matrix - columns @ np.linalg.pinv(columns) @ matrix)
    best = np.sqrt((np.linalg.svd(matrix, compute_uv=False)[10:] ** 2).sum())
    assert error < 2.5 * best


@pytest.mark.parametrize("selector", ["qr", "lu", "random"])
def test_random_choices_depend_on_seed_and_name_only(selector: str) -> None:
    """Same seed and name: same indices. Another seed or another name: other indices."""
    matrix = np.random.default_rng(8).standard_normal((200, 160))

    def indices(name: str, seed: int) -> list[int]:
        return choose(matrix, 20, selector, name, seed).rows.tolist()

    first = indices("a", 0)
    indices("b", 0)
    assert indices("a", 0) == first
    assert indices("b", 0) != first
    assert indices("a", 1) != first


@given(
    shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    share=st.floats(0, 1),
    kind=st.sampled_from(["random", "zero", "constant", "rank one", "repeated rows", "one entry"]),
    selector=st.sampled_from(SELECTORS),
    seed=st.integers(0, 99),
)
@settings(max_examples=250)
def test_indices_are_distinct_and_in_range(
    shape: tuple[int, int], share: float, kind: str, selector: str, seed: int
) -> None:
    """Every selector gives `rank` distinct int32 indices up to rank = min(m, n), on degenerate matrices too."""
    m, n = shape
    rng = np.random.default_rng(seed)
    matrix = {
        "random": rng.standard_normal((m, n)),
        "zero": np.zeros((m, n)),
        "constant": np.full((m, n), 3.0),
        "rank one": np.outer(rng.standard_normal(m), rng.standard_normal(n)),
        "repeated rows": np.tile(rng.standard_normal(n), (m, 1)),
        "one entry": np.eye(m, n) * np.eye(m, 1),
    }[kind]
    rank = max(1, round(share * min(m, n)))
    chosen = choose(matrix, rank, selector)
    for indices, size in ((chosen.rows, m), (chosen.columns, n)):
        assert indices.dtype == np.int32
        assert len(set(indices.tolist())) == rank == len(indices)
        assert indices.min() >= 0 and indices.max() < size


def test_importance_matrices_are_what_they_are_called() -> None:
    """wanda is |W|∘a, activation is W∘a, weight is W."""
    weight, rms = torch.tensor([[1.0, -2.0], [-3.0, 4.0]]), np.array([10.0, 0.5])
    assert importance_matrix(weight, rms, "wanda").dense().tolist() == [[10.0, 1.0], [30.0, 2.0]]
    assert importance_matrix(weight, rms, "activation").dense().tolist() == [[10.0, -1.0], [-30.0, 2.0]]
    assert importance_matrix(weight, rms, "weight").dense().tolist() == weight.tolist()
