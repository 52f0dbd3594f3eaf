"""A smaller attention: heads keep some dimensions of queries and keys, and some of values.

The attention modules of MoDeGPT (arXiv 2408.09632). Type II, queries and keys: a rotary embedding stands between them,
so dimensions are kept as they are, rotary pairs together; a CR decomposition of the product ranks them. Type III,
values and outputs: nothing stands between them, so each head's product is approximated as a whole, by a truncated SVD.
What is stored are rows and columns in their places, so the cache and the attention itself keep their sizes.
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

_DAMPING = 1e-9  # of the outputs' metric: a singular one stays invertible, far above rounding errors


def output_energies(projection: Projection) -> Vector:
    """Return E y_i² of each output y = W x + b, (m,): `diag(W H Wᵀ) + 2 b W μ + b²`."""
    W = projection.weight.to(torch.float64).numpy()
    energies = np.einsum("ij,ij->i", W @ projection.statistics.gram, W)
    if projection.bias is not None:
        bias = projection.bias.to(torch.float64).numpy()
        energies += 2 * bias * (W @ projection.statistics.mean) + bias**2
    return np.asarray(np.maximum(energies, 0))


def keep_dimensions(query: Vector, key: Vector, heads: Heads, kept: int) -> Indices:
    """Choose which dimensions of each key head, and of the query heads that read it, are kept.

    The score of a unit (a rotary pair, or one dimension that does not turn) is `‖C_q^½[:, u]‖ · ‖C_k^½[:, u]‖`, the CR
    decomposition's of MoDeGPT (arXiv 2408.09632, type II), summed over the query heads. C is the second moment of the
    queries or keys, and `‖C^½[:, u]‖²` its diagonal's sum over u. A rotation does not change that of a pair.

    Args:
        query: E y_i² of the queries, (heads · head_dim,).
        key: E y_i² of the keys, (kv_heads · head_dim,).
        heads: The layer's.
        kept: Dimensions to keep in each head.

    Returns:
        (kv_heads, kept) ascending, within the head.
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
    """Drop dimensions of query and key heads.

    Args:
        projections: Of query and key.
        heads: The layer's; not `normed`.
        kept: Dimensions to keep in each head, as `Heads.kept` gives them.
        dtype: Deployed dtype.

    Returns:
        By role, form `sparse_rows`, basis `rows`: bit for bit in the deployed dtype. The reported output
        error is the share of the matrix's own output that is dropped.
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

    That is the best approximation of `M^½ V H^½`, M = Σ_h O_hᵀ O_h. With a bias the columns of A also span it: the bias
    of the kept values then gives that of the dropped ones exactly. That costs one rank and changes no bias.

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
    """Approximate the product of values and outputs, head by head, in fewer dimensions.

    The kept values are pivot rows of the approximation, in their places; a bias of value stays as it is.

    Args:
        projections: Of value and output.
        heads: The layer's.
        kept: Dimensions to keep in each head, 1 to head_dim.
        ridge: λ of `H + λ diag(H)`.
        dtype: Deployed dtype.

    Returns:
        By role: value in form `sparse_rows`, basis `subspace`, and output in form `sparse_columns`. The
        reported output error of output is for the original's values.
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
    """Return the kept dimensions of all heads, counted from the first head's, given those of each key or value head."""
    of_heads = np.repeat(dimensions, heads // len(dimensions), axis=0)
    return np.asarray(of_heads + head_dim * np.arange(heads, dtype=np.int32)[:, None]).ravel()


def _row_indices(rows: Indices, m: int) -> dict[str, torch.Tensor]:
    """Return the index vectors of form `sparse_rows`."""
    order = np.full(m, len(rows), dtype=np.int32)
    order[rows] = np.arange(len(rows))
    return {"rows": torch.from_numpy(rows), "order": torch.from_numpy(order)}
