"""One basis for two matrices: against full SVDs, least squares and the K-FAC cost multiplied out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from curconvert.factorization.projection import Projection
from curconvert.factorization.shared import Metric, _Pencil, best_basis, factorize_shared, shared_basis
from curconvert.factorization.two_sided import DAMPING, damped
from curconvert.linalg.gram import ridged
from support.matrices import EDGES, correlated, edge_case, random_weight

Matrix = NDArray[np.float64]
N = 18
ROWS = (8, 6)


def gradients(seed: int, size: int) -> Matrix:
    """Return the second moment of gradients of mixed scales."""
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((4 * size, size)) * np.geomspace(1, 20, size)
    return np.asarray(drawn.T @ drawn / len(drawn))


def metrics(seed: int, scales: tuple[float, float] = (1.0, 1.0)) -> list[Metric]:
    """Two matrices of one width; the inputs' scales may differ."""
    return [
        Metric(
            random_weight(seed + index, m, N).numpy(),
            ridged(correlated(seed + index, N).gram * scale, 1e-2),
            damped(gradients(seed + index, m), DAMPING),
        )
        for index, (m, scale) in enumerate(zip(ROWS, scales, strict=True))
    ]


def cost(metric: Metric, product: Matrix) -> float:
    """`½ tr(F ΔW H ΔWᵀ)`."""
    change = metric.weight - product
    return 0.5 * float(np.trace(metric.fisher @ change @ metric.gram @ change.T))


def least(metric: Metric, basis: Matrix) -> float:
    """The cost of the least-squares fit of each row within a basis, by NumPy's own solver."""
    root = np.linalg.cholesky(metric.gram)
    fit = np.linalg.lstsq((basis @ root).T, (metric.weight @ root).T, rcond=None)[0].T
    return cost(metric, fit @ basis)


@pytest.mark.parametrize("seed", [0, 1])
def test_costs_of_every_rank_are_those_of_least_squares(seed: int) -> None:
    """One factorization prices all leading parts of a basis, and none costs nothing but the whole."""
    pair = metrics(seed, (1.0, 50.0))
    basis = shared_basis(*pair)
    for metric in pair:
        found = metric.costs_within(basis.rows)
        assert found.shape == (sum(ROWS) + 1,)
        expected = [cost(metric, np.zeros_like(metric.weight))]
        expected += [least(metric, basis.rows[:rank]) for rank in range(1, sum(ROWS) + 1)]
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8 * expected[0])


def test_costs_of_a_matrix_by_itself_are_those_of_a_full_svd() -> None:
    """Half the discarded singular values' squares."""
    (metric, _) = metrics(3)
    roots = [np.linalg.cholesky(matrix) for matrix in (metric.fisher, metric.gram)]
    sigma = np.linalg.svd(roots[0].T @ metric.weight @ roots[1], compute_uv=False)
    expected = [0.5 * (sigma[rank:] ** 2).sum() for rank in range(len(sigma) + 1)]
    np.testing.assert_allclose(metric.best_costs(), expected, rtol=1e-8, atol=1e-9 * expected[0])


def test_with_one_common_input_the_basis_is_the_best_there_is() -> None:
    """Then it is the stacked matrix's truncated SVD, and no basis costs less."""
    first, second = metrics(4)
    pair = [first, Metric(second.weight, first.gram, second.fisher)]
    root = np.linalg.cholesky(first.gram)
    stacked = np.concatenate([np.linalg.cholesky(metric.fisher).T @ metric.weight @ root for metric in pair])
    sigma = np.linalg.svd(stacked, compute_uv=False)
    basis = shared_basis(*pair)
    for rank in (1, 5, 12):
        found = sum(float(metric.costs_within(basis.rows)[rank]) for metric in pair)
        assert found == pytest.approx(0.5 * (sigma[rank:] ** 2).sum(), rel=1e-7)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scales", [(1.0, 1.0), (1.0, 1e4), (1e-4, 1.0)])
def test_the_bound_holds_and_the_left_factors_improve_on_it(seed: int, scales: tuple[float, float]) -> None:
    """In the own metrics, at every rank, however much the inputs differ."""
    pair = metrics(seed, scales)
    traces = [np.trace(metric.gram) for metric in pair]
    common = np.linalg.cholesky(sum(metric.gram / trace for metric, trace in zip(pair, traces, strict=True)) / 2)
    stacked = [
        np.sqrt(trace) * np.linalg.cholesky(metric.fisher).T @ metric.weight @ common
        for metric, trace in zip(pair, traces, strict=True)
    ]
    sigma = np.linalg.svd(np.concatenate(stacked), compute_uv=False)
    basis = shared_basis(*pair)
    costs = sum(metric.costs_within(basis.rows) for metric in pair)
    for rank in range(sum(ROWS)):
        assert costs[rank] <= (sigma[rank:] ** 2).sum() * (1 + 1e-9)


def test_the_scale_of_one_layers_inputs_does_not_matter() -> None:
    """Inputs a hundred times as large with gradients a hundredth: the same layer in other units, the same basis."""
    first, second = metrics(5)
    other = Metric(second.weight, second.gram * 1e4, second.fisher / 1e4)
    one, two = shared_basis(first, second).rows[:5], shared_basis(first, other).rows[:5]
    together = np.linalg.svd(np.concatenate([one / np.linalg.norm(one), two / np.linalg.norm(two)]), compute_uv=False)
    assert together[5] < 1e-9 * together[0]


def projections(seed: int, bias: bool = False) -> list[Projection]:
    made = []
    for index, m in enumerate(ROWS):
        added = random_weight(seed + 7 + index, m, 1)[:, 0] if bias else None
        made.append(Projection(random_weight(seed + index, m, N), correlated(seed + index, N), added))
    return made


FISHERS = [gradients(index, m) for index, m in enumerate(ROWS)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rank", [2, 7, 9, 12])
def test_what_is_stored_is_the_best_on_the_basis(rank: int, bias: bool) -> None:
    """One R, rows of it divided between the two, T moderate, and the product that of least squares."""
    pair = projections(0, bias)
    found = factorize_shared(pair, FISHERS, rank, 1e-2, torch.float64)
    wanted = [Metric.of(projection, fisher, 1e-2) for projection, fisher in zip(pair, FISHERS, strict=True)]
    _, basis = shared_basis(*wanted).factors(rank)
    for factors, metric in zip(found, wanted, strict=True):
        assert cost(metric, factors.product().numpy()) == pytest.approx(least(metric, basis), rel=1e-8)
    R = found[0].tensors["R"]
    assert R.shape == (rank, N)
    assert torch.equal(R, found[1].tensors["R"])
    places = []
    for factors, m in zip(found, ROWS, strict=True):
        rows, order, T = (factors.tensors[suffix] for suffix in ("rows", "order", "T"))
        assert T.shape == (m - len(rows), rank)
        assert T.abs().max() <= 2
        places += order[rows.long()].tolist()
        others = sorted(set(range(m)) - set(rows.tolist()))
        assert order[others].tolist() == list(range(rank, rank + len(others)))
        np.testing.assert_allclose(factors.product()[rows.long()], R[order[rows.long()].long()])
    assert places == list(range(rank))
    numbers = R.numel() + sum(factors.tensors["T"].numel() for factors in found)
    assert numbers == rank * (N + sum(ROWS) - rank)


@pytest.mark.parametrize("scales", [(1.0, 1.0), (1.0, 1e4)])
@pytest.mark.parametrize("rank", [3, 9, 13])
def test_turns_never_raise_the_cost(rank: int, scales: tuple[float, float]) -> None:
    """What is stored costs less than what sharing is decided by."""
    pair = metrics(8, scales)
    basis = shared_basis(*pair)
    A, B = basis.factors(rank)
    np.testing.assert_allclose(A.T @ A, np.eye(rank), atol=1e-12)
    products = np.split(A @ B, [ROWS[0]])
    stored = sum(cost(metric, product) for metric, product in zip(pair, products, strict=True))
    decided = sum(float(metric.costs_within(basis.rows)[rank]) for metric in pair)
    assert stored < 0.999 * decided


def test_a_basis_is_the_best_for_its_left_factors() -> None:
    """Against one large least-squares problem for all of its numbers at once; dead inputs keep theirs."""
    dead = [2, 5]
    pair = metrics(9)
    for metric in pair:
        metric.gram[dead] = metric.gram[:, dead] = 0
    first, second = shared_basis(*pair).metrics
    rng = np.random.default_rng(0)
    A, B = np.linalg.qr(rng.standard_normal((sum(ROWS), 4)))[0], rng.standard_normal((4, N))
    found = best_basis((first, second), A, B, _Pencil.of(first.gram, second.gram))
    np.testing.assert_allclose(found[:, dead], B[:, dead], atol=1e-9)
    system, target = [], []
    for metric, left in zip((first, second), np.split(A, [ROWS[0]]), strict=True):
        values, vectors = np.linalg.eigh(metric.gram)
        right = vectors * np.sqrt(np.maximum(values, 0))
        root = np.linalg.cholesky(metric.fisher).T
        system.append(np.kron(root @ left, right.T))
        target.append((root @ metric.weight @ right).ravel())
    expected = np.linalg.lstsq(np.concatenate(system), np.concatenate(target), rcond=1e-12)[0].reshape(4, N)
    live = [column for column in range(N) if column not in dead]
    np.testing.assert_allclose(found[:, live], expected[:, live], rtol=1e-3, atol=1e-4)


def test_equal_matrices_share_without_loss() -> None:
    """The second one is free: one basis of rank r is as good as two."""
    (projection, _), fisher = projections(2), FISHERS[0]
    found = factorize_shared([projection, projection], [fisher, fisher], 5, 1e-2, torch.float64)
    metric = Metric.of(projection, fisher, 1e-2)
    for factors in found:
        assert cost(metric, factors.product().numpy()) == pytest.approx(metric.best_costs()[5], rel=1e-8)


@pytest.mark.parametrize("name", EDGES)
def test_edges_give_finite_factors_and_costs(name: str) -> None:
    """Dead inputs, repeated rows, nothing at all: in one of the two matrices or in both."""
    weight, stats = edge_case(name, 8, N)
    for pair in ([(weight, stats), (random_weight(1, 8, N), correlated(1, N))], [(weight, stats), (weight, stats)]):
        both = [Projection(each, moments) for each, moments in pair]
        fishers = [gradients(0, 8), np.zeros((8, 8))]
        metrics = [Metric.of(one, fisher, 1e-2) for one, fisher in zip(both, fishers, strict=True)]
        basis = shared_basis(*metrics)
        for metric in metrics:
            costs = metric.costs_within(basis.rows)
            assert np.isfinite(costs).all()
            assert (np.diff(costs) <= 1e-12 * costs[0]).all()
        for factors in factorize_shared(both, fishers, 6, 1e-2, torch.float32):
            assert all(torch.isfinite(factors.tensors[suffix]).all() for suffix in "RT")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_stated_error_is_that_of_the_stored_numbers(dtype: torch.dtype) -> None:
    """Rounding included, in the matrix's own metric."""
    pair = projections(0)
    for factors, projection in zip(factorize_shared(pair, FISHERS, 9, 1e-2, dtype), pair, strict=True):
        W, H = projection.weight.numpy(), projection.statistics.gram
        lost = W - factors.product().numpy()
        expected = np.sqrt(np.trace(lost @ H @ lost.T) / np.trace(W @ H @ W.T))
        assert factors.relative_output_error == pytest.approx(expected, rel=1e-5)
        assert factors.tensors["R"].dtype == factors.tensors["T"].dtype == dtype


def test_a_layer_without_inputs_leaves_the_basis_to_the_other() -> None:
    """The other one is then as good as alone."""
    first, second = metrics(6)
    silent = Metric(first.weight, np.zeros((N, N)), first.fisher)
    basis = shared_basis(silent, second).rows
    np.testing.assert_allclose(
        second.costs_within(basis)[: ROWS[1] + 1], second.best_costs(), rtol=1e-6, atol=1e-9 * second.best_costs()[0]
    )
