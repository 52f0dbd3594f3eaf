"""Compresses attention: heads keep some dimensions of queries and keys, and some of values.

These are the attention modules of MoDeGPT (arXiv 2408.09632). Type II, queries and keys: a rotary embedding is applied
between them, so the kept dimensions stay unchanged, rotary pairs together; a CR decomposition of the product ranks
them. Type III, values and outputs: nothing is between them, so a truncated SVD approximates each head's product as a
whole. Stored rows and columns keep their positions, so the KV cache and the attention itself keep their sizes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray

from curconvert.base.roles import SPARSE, Role
from curconvert.base.types import Indices, Matrix, Vector
from curconvert.factorization.interpolative import spanning_rows
from curconvert.factorization.measured import deployed, measured
from curconvert.factorization.projection import Projection
from curconvert.factorization.two_sided import damped, two_sided
from curconvert.factorization.types import Factorization
from curconvert.families.heads import Heads
from curconvert.linalg.gram import ridged

_DAMPING = 1e-9  # of the outputs' metric: makes a singular one invertible, and is far above rounding errors


def output_energies(projection: Projection) -> Vector:
    """Return E y_i² of each output y = W x + b, (m,): `diag(W H Wᵀ) + 2 b W μ + b²`."""
    W = projection.weight.to(torch.float64).numpy()
    energies = np.einsum("ij,ij->i", W @ projection.statistics.gram, W)
    if projection.bias is not None:
        bias = projection.bias.to(torch.float64).numpy()
        energies += 2 * bias * (W @ projection.statistics.mean) + bias**2
    return np.asarray(np.maximum(energies, 0))


def keep_dimensions(query: Vector, key: Vector, heads: Heads, kept: int) -> Indices:
    """Choose the dimensions that each key head, and the query heads that read it, keep.

    A unit is a rotary pair, or one dimension without rotation. Its score is `‖C_q^½[:, u]‖ · ‖C_k^½[:, u]‖`, as in the
    CR decomposition of MoDeGPT (arXiv 2408.09632, type II), summed over the query heads. C is the second moment of the
    queries or keys, and `‖C^½[:, u]‖²` is the sum of its diagonal over u. A rotation does not change a pair's sum.

    Args:
        query: E y_i² of the queries, (heads · head_dim,).
        key: E y_i² of the keys, (kv_heads · head_dim,).
        heads: The layer's heads.
        kept: Dimensions to keep in each head.

    Returns:
        (kv_heads, kept) ascending, counted within the head.
    """
    turning, half = 2 * heads.pairs, heads.pairs
    query = query.reshape(heads.kv_heads, -1, heads.head_dim)
    key = key.reshape(heads.kv_heads, 1, heads.head_dim)

    def leading(queries: Vector, keys: Vector, count: int) -> NDArray[np.intp]:
        scores = np.sqrt(queries * keys).sum(axis=1)
        return np.argsort(-scores, axis=1, kind="stable")[:, :count]

    pairs, others = heads.units(kept)
    q, k = (energies[..., :half] + energies[..., half:turning] for energies in (query, key))
    first = leading(q, k, pairs)
    rest = turning + leading(query[..., turning:], key[..., turning:], others)
    return np.sort(np.concatenate([first, first + half, rest], axis=1), axis=1).astype(np.int32)


def factorize_query_key(
    projections: Mapping[Role, Projection], heads: Heads, kept: int, dtype: torch.dtype
) -> dict[Role, Factorization]:
    """Factorize query and key: each head keeps some of its dimensions.

    Args:
        projections: Projections of query and key.
        heads: The layer's heads; not `normed`.
        kept: Dimensions to keep in each head, as `Heads.kept` gives them.
        dtype: Deployed dtype.

    Returns:
        By role, form `sparse_rows`, basis `rows`; the kept rows are exact copies in the deployed dtype. The reported
        output error is the dropped share of the matrix's own output.
    """
    dimensions = keep_dimensions(
        output_energies(projections[Role.QUERY]), output_energies(projections[Role.KEY]), heads, kept
    )
    found = {}
    for role in (Role.QUERY, Role.KEY):
        part, rows = projections[role], _places(dimensions, heads.count(role), heads.head_dim)
        weight = part.weight.to(dtype).index_select(0, torch.from_numpy(rows))
        tensors = {"weight": weight, **_row_indices(rows, len(part.weight))}
        found[role] = measured(SPARSE[role], tensors, len(rows), part.weight, part.statistics, basis="rows")
    return found


def joint_approximation(
    value: Matrix, gram: Matrix, outputs: Matrix, rank: int, bias: Vector | None = None
) -> tuple[Matrix, Matrix]:
    """Minimize `Σ_h ‖O_h (V − A B) H^½‖_F` for one value head (MoDeGPT, arXiv 2408.09632, type III).

    The minimum is the best approximation of `M^½ V H^½`, M = Σ_h O_hᵀ O_h. With a bias, the columns of A also span the
    bias: the biases of the kept values then give those of the dropped ones exactly. This takes one rank and changes no
    bias.

    Args:
        value: V, (head_dim, n).
        gram: H, (n, n) symmetric positive semi-definite.
        outputs: M, (head_dim, head_dim) symmetric positive semi-definite.
        rank: 1 ≤ r ≤ head_dim.
        bias: b of the values, (head_dim,), or None.

    Returns:
        A, (head_dim, r) with orthonormal columns; B, (r, n).
    """
    metric = damped(outputs, _DAMPING)
    if bias is None or not bias.any():
        return two_sided(value, gram, metric).factors(rank)
    along = metric @ bias
    share = (along @ value) / (along @ bias)
    best = two_sided(value - np.outer(bias, share), gram, metric)
    left = np.column_stack([bias, best.left[:, : rank - 1]])
    basis, triangle = scipy.linalg.qr(left, mode="economic", check_finite=False)
    return np.asarray(basis), np.asarray(triangle @ np.vstack([share, best.right[: rank - 1]]))


def factorize_value_output(
    projections: Mapping[Role, Projection], heads: Heads, kept: int, ridge: float, dtype: torch.dtype
) -> dict[Role, Factorization]:
    """Factorize value and output: approximate their product, head by head, in fewer dimensions.

    The kept values are pivot rows of the approximation, at their positions; the bias of value does not change.

    Args:
        projections: Projections of value and output.
        heads: The layer's heads.
        kept: Dimensions to keep in each head, 1 to head_dim.
        ridge: λ of `H + λ diag(H)`.
        dtype: Deployed dtype.

    Returns:
        By role: value in form `sparse_rows`, basis `subspace`, and output in form `sparse_columns`. The output error
        reported for output is measured on the original's values.
    """
    value, output = projections[Role.VALUE], projections[Role.OUTPUT]
    V, W = (part.weight.to(torch.float64).numpy() for part in (value, output))
    H, size = ridged(value.statistics.gram, ridge), heads.head_dim
    bias = None if value.bias is None else value.bias.to(dtype).to(torch.float64).numpy()
    outputs = W.reshape(len(W), heads.kv_heads, -1, size)
    dimensions = np.empty((heads.kv_heads, kept), dtype=np.int32)
    values, columns = [], []
    for head in range(heads.kv_heads):
        own = slice(head * size, (head + 1) * size)
        metric = np.einsum("ohi,ohj->ij", outputs[:, head], outputs[:, head], optimize=True)
        A, B = joint_approximation(V[own], H, metric, kept, None if bias is None else bias[own])
        rows, T = spanning_rows(A)
        coefficients = np.empty((size, kept))
        coefficients[rows], coefficients[np.setdiff1d(np.arange(size), rows)] = np.eye(kept), T
        ascending = np.argsort(rows)
        dimensions[head] = rows[ascending]
        values.append(A[dimensions[head]] @ B)
        columns.append((outputs[:, head] @ coefficients[:, ascending]).reshape(len(W), -1))
    rows, order = (_places(dimensions, heads.count(role), size) for role in (Role.VALUE, Role.OUTPUT))
    value_tensors = {"weight": deployed(np.concatenate(values), dtype), **_row_indices(rows, len(V))}
    output_tensors = {"weight": deployed(np.concatenate(columns, axis=1), dtype), "order": torch.from_numpy(order)}
    return {
        Role.VALUE: measured(
            SPARSE[Role.VALUE], value_tensors, len(rows), value.weight, value.statistics, basis="subspace"
        ),
        Role.OUTPUT: measured(SPARSE[Role.OUTPUT], output_tensors, len(order), output.weight, output.statistics),
    }


def _places(dimensions: Indices, heads: int, head_dim: int) -> Indices:
    """Return the kept dimensions of all heads as positions in the matrix, from those within each key or value head."""
    of_heads = np.repeat(dimensions, heads // len(dimensions), axis=0)
    return np.asarray(of_heads + head_dim * np.arange(heads, dtype=np.int32)[:, None]).ravel()


def _row_indices(rows: Indices, m: int) -> dict[str, torch.Tensor]:
    """Return the index vectors of form `sparse_rows`."""
    order = np.full(m, len(rows), dtype=np.int32)
    order[rows] = np.arange(len(rows))
    return {"rows": torch.from_numpy(rows), "order": torch.from_numpy(order)}
