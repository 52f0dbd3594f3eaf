"""A smaller attention: which dimensions are kept, and the best product of values and outputs, by NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from curconvert.base.roles import Role
from curconvert.factorization.attention_modules import (
    factorize_query_key,
    factorize_value_output,
    joint_approximation,
    keep_dimensions,
    output_energies,
)
from curconvert.factorization.modular import Projection
from curconvert.families.heads import Heads
from curconvert.linalg.statistics import InputStatistics
from support.matrices import correlated, random_weight

Matrix = NDArray[np.float64]
HIDDEN = 20
HEADS = Heads(heads=6, kv_heads=2, head_dim=8, pairs=4, normed=False)
PARTIAL = replace(HEADS, pairs=3)
WITHOUT_POSITIONS = replace(HEADS, pairs=0)


def projection(seed: int, m: int, n: int = HIDDEN, biased: bool = False) -> Projection:
    bias = random_weight(seed + 50, m, 1)[:, 0] if biased else None
    return Projection(random_weight(seed, m, n), correlated(seed % 7, n), bias)


def query_key(seed: int = 0, biased: bool = False) -> dict[Role, Projection]:
    """The two projections, on the same input."""
    return {Role.QUERY: projection(seed, 48, biased=biased), Role.KEY: projection(seed + 1, 16, biased=biased)}


def value_output(seed: int = 0, biased: bool = False) -> dict[Role, Projection]:
    """The two projections, and an input of o_proj of any kind."""
    return {Role.VALUE: projection(seed, 16, biased=biased), Role.OUTPUT: projection(seed + 1, HIDDEN, 48)}


def root(matrix: Matrix) -> Matrix:
    """Return the symmetric square root."""
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)


@pytest.mark.parametrize("heads", [HEADS, PARTIAL, WITHOUT_POSITIONS])
@given(density=st.floats(0.01, 0.99))
def test_units_add_up_to_the_kept_dimensions(heads: Heads, density: float) -> None:
    """Whole pairs and single dimensions, no more than there are, at most the share of the head."""
    kept = heads.kept(Role.KEY, density)
    assert kept <= density * heads.head_dim < kept + 2
    pairs, others = heads.units(kept)
    assert 2 * pairs + others == kept
    assert 0 <= pairs <= heads.pairs
    assert 0 <= others <= heads.head_dim - 2 * heads.pairs
    assert heads.kept(Role.OUTPUT, density) == int(density * 8)


@pytest.mark.parametrize("heads", [HEADS, PARTIAL, WITHOUT_POSITIONS])
@pytest.mark.parametrize("kept", [2, 4, 6])
def test_the_best_units_of_each_key_head_are_kept(heads: Heads, kept: int) -> None:
    """By the definition: the root mean square of a unit's queries times that of its keys, over three query heads."""
    rng = np.random.default_rng(kept)
    queries, keys = rng.standard_normal((500, 6, 8)) * rng.exponential(1, (6, 8)), rng.standard_normal((500, 2, 8))
    found = keep_dimensions((queries**2).mean(0).ravel(), (keys**2).mean(0).ravel(), heads, kept)
    assert found.shape == (2, kept)
    pairs, _ = heads.units(kept)
    for head in range(2):
        units = [[i, i + heads.pairs] for i in range(heads.pairs)] + [[i] for i in range(2 * heads.pairs, 8)]
        group = range(3 * head, 3 * head + 3)
        scores = [
            sum(np.linalg.norm(queries[:, h, u]) * np.linalg.norm(keys[:, head, u]) for h in group) for u in units
        ]
        order = np.argsort(-np.array(scores))
        turning = [units[i] for i in order if len(units[i]) == 2][:pairs]
        single = [units[i] for i in order if len(units[i]) == 1][: kept - 2 * pairs]
        assert found[head].tolist() == sorted(i for unit in turning + single for i in unit)


def test_scores_do_not_depend_on_positions() -> None:
    """A rotation of each token's pairs by its own angle leaves the energy of a pair."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 8)) + np.arange(8)
    angles = rng.uniform(0, 7, (300, 4))
    turned = (x[:, :4] + 1j * x[:, 4:]) * np.exp(1j * angles)
    rotated = np.concatenate([turned.real, turned.imag], axis=1)
    one = replace(HEADS, heads=1, kv_heads=1)
    other = rng.exponential(1, 8)
    before, after = (keep_dimensions((y**2).mean(0), other, one, 4) for y in (x, rotated))
    pairs = [i for i in range(4) if i in before]
    assert np.array_equal([i for i in range(4) if i in after], pairs)


def test_energies_are_second_moments() -> None:
    """Of W x + b, for inputs whose mean is not zero."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((400, 5)) + rng.standard_normal(5)
    statistics = InputStatistics(x.T @ x / len(x), len(x), x.mean(0))
    part = Projection(random_weight(0, 7, 5), statistics, random_weight(1, 7, 1)[:, 0])
    assert part.bias is not None
    outputs = x @ part.weight.numpy().T + part.bias.numpy()
    np.testing.assert_allclose(output_energies(part), (outputs**2).mean(0), rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_queries_and_keys_are_rows_in_their_places(dtype: torch.dtype) -> None:
    """Bit for bit; every query head keeps the dimensions of its key head; the bias is no part of it."""
    parts = query_key(biased=True)
    found = factorize_query_key(parts, HEADS, 4, dtype)
    rows = {name: found[name].tensors["rows"].numpy() for name in parts}
    assert [len(rows[name]) for name in (Role.QUERY, Role.KEY)] == [24, 8]
    keys = rows[Role.KEY].reshape(2, 4) - 8 * np.arange(2)[:, None]
    queries = rows[Role.QUERY].reshape(6, 4) - 8 * np.arange(6)[:, None]
    assert np.array_equal(queries, np.repeat(keys, 3, axis=0))
    assert all(set(head) == {i for j in head for i in (j % 4, j % 4 + 4)} for head in keys.tolist())
    for name, part in parts.items():
        factors = found[name]
        assert (factors.form, factors.basis, factors.rank) == ("sparse_rows", "rows", len(rows[name]))
        assert factors.tensors.keys() == {"weight", "rows", "order"}
        whole = torch.zeros_like(part.weight)
        whole[rows[name]] = part.weight.to(dtype)[rows[name]].double()
        assert torch.equal(factors.product(), whole)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_product_of_values_and_outputs_is_the_best(rank: int) -> None:
    """`Σ_h ‖O_h (V − AB) H^½‖²` is what a truncated SVD of the stacked `O_h V H^½` discards."""
    rng = np.random.default_rng(rank)
    V, H, outputs = rng.standard_normal((8, HIDDEN)), correlated(1, HIDDEN).gram, rng.standard_normal((3, HIDDEN, 8))
    A, B = joint_approximation(V, H, sum(o.T @ o for o in outputs), rank)
    stacked = np.concatenate(list(outputs))
    sigma = np.linalg.svd(stacked @ V @ root(H), compute_uv=False)
    error = np.linalg.norm(stacked @ (V - A @ B) @ root(H))
    assert error == pytest.approx(np.linalg.norm(sigma[rank:]), rel=1e-6)
    np.testing.assert_allclose(A.T @ A, np.eye(rank), atol=1e-12)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_bias_is_spanned(rank: int) -> None:
    """It is one of the directions, and the others are the best for what it leaves over."""
    rng = np.random.default_rng(rank)
    V, H, output = rng.standard_normal((8, HIDDEN)), correlated(1, HIDDEN).gram, rng.standard_normal((HIDDEN, 8))
    bias = rng.standard_normal(8)
    A, B = joint_approximation(V, H, output.T @ output, rank, bias)
    np.testing.assert_allclose(A @ (A.T @ bias), bias, atol=1e-10)
    unit = output @ bias / np.linalg.norm(output @ bias)
    rest = output @ V - np.outer(unit, unit @ output @ V)
    sigma = np.append(np.linalg.svd(rest @ root(H), compute_uv=False), np.zeros(8))
    error = np.linalg.norm(output @ (V - A @ B) @ root(H))
    assert error == pytest.approx(np.linalg.norm(sigma[rank - 1 :]), rel=1e-6, abs=1e-6 * sigma[0])


def attended(parts: dict[str, torch.Tensor], bias: Matrix, x: Matrix, mixing: Matrix) -> Matrix:
    """Return `Σ_h O_h · Σ_t mixing[h, t] (V x_t + b)`, whose mixing weights add up to one."""
    values = x @ parts[Role.VALUE].numpy().T + bias
    heads = [mixing[h] @ values[:, 8 * (h // 3) : 8 * (h // 3 + 1)] for h in range(6)]
    return np.asarray(np.concatenate(heads) @ parts[Role.OUTPUT].numpy().T)


@pytest.mark.parametrize("biased", [True, False])
def test_all_dimensions_give_the_original_attention(biased: bool) -> None:
    """With every dimension kept, values and outputs multiply to what they were, bias included."""
    parts = value_output(3, biased)
    found = factorize_value_output(parts, HEADS, 8, 0.0, torch.float64)
    rng = np.random.default_rng(0)
    x, mixing = rng.standard_normal((5, HIDDEN)), rng.dirichlet(np.ones(5), 6)
    bias = np.zeros(16) if parts[Role.VALUE].bias is None else parts[Role.VALUE].bias.numpy()
    weights = {name: part.weight for name, part in parts.items()}
    products = {name: factors.product() for name, factors in found.items()}
    np.testing.assert_allclose(attended(products, bias, x, mixing), attended(weights, bias, x, mixing), rtol=1e-8)
    for factors in factorize_query_key(query_key(), HEADS, 8, torch.float64).values():
        assert factors.relative_frobenius_error == 0


def test_the_bias_reaches_the_output_whole() -> None:
    """With nothing but the bias to attend to, the smaller attention gives the original's output."""
    parts = value_output(5, biased=True)
    found = factorize_value_output(parts, HEADS, 3, 1e-2, torch.float64)
    assert parts[Role.VALUE].bias is not None
    bias, mixing, x = parts[Role.VALUE].bias.numpy(), np.ones((6, 1)), np.zeros((1, HIDDEN))
    products = {name: factors.product() for name, factors in found.items()}
    weights = {name: part.weight for name, part in parts.items()}
    np.testing.assert_allclose(attended(products, bias, x, mixing), attended(weights, bias, x, mixing), rtol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_values_and_outputs_store_the_approximation(dtype: torch.dtype) -> None:
    """O'·V' of each group is O_h·A·B up to the rounding of the stored dtype; o_proj reads what v_proj gives."""
    parts = value_output(2)
    found = factorize_value_output(parts, HEADS, 3, 0.0, dtype)
    assert [(f.form, f.basis, f.rank) for f in found.values()] == [
        ("sparse_rows", "subspace", 6),
        ("sparse_columns", None, 18),
    ]
    assert found[Role.OUTPUT].tensors.keys() == {"weight", "order"}
    read = found[Role.OUTPUT].tensors["order"].reshape(6, 3) - 8 * torch.arange(6)[:, None]
    given = found[Role.VALUE].tensors["rows"].reshape(2, 3) - 8 * torch.arange(2)[:, None]
    assert torch.equal(read, given.repeat_interleave(3, dim=0))
    V, W, H = parts[Role.VALUE].weight.numpy(), parts[Role.OUTPUT].weight.numpy(), parts[Role.VALUE].statistics.gram
    smaller, output = found[Role.VALUE].product().numpy(), found[Role.OUTPUT].product().numpy()
    for group in range(2):
        own = slice(8 * group, 8 * group + 8)
        blocks = [slice(8 * h, 8 * h + 8) for h in range(3 * group, 3 * group + 3)]
        wanted = np.concatenate([W[:, block] for block in blocks]) @ V[own] @ root(H)
        product = np.concatenate([output[:, block] for block in blocks]) @ smaller[own] @ root(H)
        left, sigma, right = np.linalg.svd(wanted, full_matrices=False)
        best = (left[:, :3] * sigma[:3]) @ right[:3]
        np.testing.assert_allclose(product, best, atol=(1e-5 if dtype is torch.float32 else 5e-3) * sigma[0])


@pytest.mark.parametrize("kept", [1, 5, 8])
def test_edge_cases_are_finite(kept: int) -> None:
    """A head whose outputs are zero, values that are zero, no input at all."""
    parts = value_output(1, biased=True)
    parts[Role.OUTPUT].weight[:, :24] = 0
    parts[Role.VALUE].weight[8:] = 0
    for gram in (parts[Role.VALUE].statistics.gram, np.zeros((HIDDEN, HIDDEN))):
        edge = parts | {
            Role.VALUE: replace(parts[Role.VALUE], statistics=InputStatistics(gram, 9, np.zeros(len(gram))))
        }
        for factors in factorize_value_output(edge, HEADS, kept, 0.0, torch.float16).values():
            assert all(torch.isfinite(tensor).all() for tensor in factors.tensors.values())
            assert np.isfinite(factors.relative_output_error)
