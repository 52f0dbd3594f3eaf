"""Counts flops and memory of factorizations from shapes, for the estimate of a conversion.

The counts are the leading terms of each implemented algorithm, in float64: `2·m·n·k` for a product, `n³` over a
measured rate for a symmetric eigenproblem. Factors that are not such counts are fitted to measured times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from curconvert.base.plan import MatrixPlan

LAPACK = 0.5
"""Speed of QR, Cholesky and low-rank updates, as a share of the speed of large products."""
_SUMS = 5  # matrices that measuring an error holds, each of the weight's size or a chunk's, the smaller of both


@dataclass(frozen=True)
class Cost:
    """Holds the cost of one factorization.

    Attributes:
        flops: Flops of products, in float64.
        eigen: Sizes of symmetric eigenproblems.
        held: Peak memory, bytes.
    """

    flops: float
    eigen: tuple[float, ...]
    held: float


def cost_of(matrix: MatrixPlan, tokens: int) -> Cost:
    """Return the cost of a best low-rank approximation: the smaller Gram matrix of `W H^½`, and a root of H if m > n.

    Args:
        matrix: The matrix with its rank.
        tokens: Number of calibration tokens.
    """
    m, n = matrix.shape
    outputs = 4.0 * m * n**2 if m > n else _outputs(matrix, tokens)
    return Cost(_thin(matrix, tokens) + outputs, (m,) if m <= n else (n, n), _whole(matrix))


def of_rows(matrix: MatrixPlan, tokens: int) -> Cost:
    """Return the cost of choosing rows by the outputs' Gram matrix, and of solving for the coefficients."""
    return Cost(_thin(matrix, tokens) + _outputs(matrix, tokens), (matrix.rank or 0,), _whole(matrix))


def of_both_sides(matrix: MatrixPlan, tokens: int) -> Cost:
    """Return the cost of the best approximation for inputs and loss, see `two_sided`."""
    m = matrix.shape[0]
    return Cost(_thin(matrix, tokens) + _outputs(matrix, tokens) + 8.0 * m**3, (m, m), _whole(matrix))


def of_selection(matrix: MatrixPlan, tokens: int, *, pivots: bool, bases: bool) -> Cost:
    """Return the cost of C·U·R.

    Args:
        matrix: The matrix with its rank.
        tokens: Number of calibration tokens.
        pivots: Whether rows and columns are chosen by pivoting.
        bases: Whether they are chosen by leading singular vectors.
    """
    from curconvert.linalg.bases import krylov_size
    from curconvert.selection.indices import EXACT_OUTPUTS

    (m, n), rank = matrix.shape, matrix.rank or 0
    flops, eigen = _error(matrix, tokens) + 8.0 * m * n * rank + 2 * _factors(matrix), [float(rank)]
    size = krylov_size(matrix.shape, rank)
    if pivots:
        flops += 4.0 * m * n * rank + (_outputs(matrix, tokens) if m <= EXACT_OUTPUTS else 2.0 * m * n * rank)
        return Cost(flops, tuple(eigen), _sums(matrix) + 8.0 * 4 * (m + n) * rank)
    if bases:  # twice as many products, but in float32
        flops += 2.0 * m * n * size if size else 1.0 * m * n * min(m, n)
        eigen.append(size or min(m, n) / 2 ** (1 / 3))  # in float32
    held = max(_sums(matrix), 8.0 * (m + n) * size + 4.0 * m * n) if size else _whole(matrix)
    return Cost(flops, tuple(eigen), held)


def of_part(matrix: MatrixPlan, tokens: int) -> Cost:
    """Return the cost of a form that keeps some rows or columns; for other forms, see `cost_of`."""
    if matrix.form not in _PARTS:
        return cost_of(matrix, tokens)
    (m, n), rank = matrix.shape, matrix.rank or 0
    # Leverage scores need an inverse: memory for the scaled Gram matrix, its inverse and that of the kept columns.
    held = 8.0 * (4 * n**2 + 4 * m * n) if matrix.form in _INVERTS else _whole(matrix)
    return Cost(2 * _error(matrix, tokens) + _PARTS[matrix.form](m, n, rank), (), held)


_PARTS: Mapping[str, Callable[[int, int, int], float]] = {
    "modular_rows": lambda m, n, rank: 0.0,
    # Leverage scores from an inverse, and the correction of the kept columns.
    "modular_columns": lambda m, n, rank: 0.7 * n**3 + 2.0 * m * n * rank + rank**3 / 3 + 2.0 * m * rank**2,
    "sparse_rows": lambda m, n, rank: 2.0 * m * n**2,
    "sparse_columns": lambda m, n, rank: 0.0,
}
"""Flops of the forms that keep a part of the weight, without measuring their errors."""
_INVERTS = ("modular_columns",)


def _error(matrix: MatrixPlan, tokens: int) -> float:
    """Return the flops of measuring an error: images of the weight's rows, through H or the inputs themselves.

    Inputs are float32, so products with them count half.
    """
    m, n = matrix.shape
    return float(m * n * tokens) if tokens < n else 2.0 * m * n**2


def _outputs(matrix: MatrixPlan, tokens: int) -> float:
    """Return the flops of `W H Wᵀ`."""
    m, n = matrix.shape
    return _error(matrix, tokens) + 2.0 * m**2 * n


def _factors(matrix: MatrixPlan) -> float:
    """Return the flops of decomposing both thin factors."""
    return 4.0 * sum(matrix.shape) * (matrix.rank or 0) ** 2 / LAPACK


def _thin(matrix: MatrixPlan, tokens: int) -> float:
    m, n = matrix.shape
    return _error(matrix, tokens) + 4.0 * m * n * (matrix.rank or 0) + 2 * _factors(matrix)


def _sums(matrix: MatrixPlan) -> float:
    from curconvert.linalg.chunked import CHUNK

    m, n = matrix.shape
    return _SUMS * 8.0 * min(m * n, CHUNK)


def _whole(matrix: MatrixPlan) -> float:
    """Return the peak memory of a method that needs float64 copies of the whole weight, bytes."""
    m, n = matrix.shape
    return max(_sums(matrix) + 8.0 * m * n, 8.0 * (4 * m * n + 2 * min(m, n) ** 2))
