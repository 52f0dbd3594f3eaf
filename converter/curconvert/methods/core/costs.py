"""What factorizations compute and hold, counted from shapes: an estimate's time and memory come from these.

The leading terms of each algorithm as it is implemented, in float64: `2·m·n·k` for a product, `n³` over a measured rate
for a symmetric eigenproblem. Where a factor below is no such count it was fitted to measured times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from curconvert.base.plan import MatrixPlan

LAPACK = 0.5
"""Share of the speed of large products that QR, Cholesky and updates of low rank reach."""
_SUMS = 5  # matrices of a weight's size, but at most of a chunk's, that the measuring of an error holds


@dataclass(frozen=True)
class Cost:
    """What one factorization takes.

    Attributes:
        flops: Of products, in float64.
        eigen: Sizes of symmetric eigenproblems.
        held: Bytes at its peak.
    """

    flops: float
    eigen: tuple[float, ...]
    held: float


def cost_of(matrix: MatrixPlan, tokens: int) -> Cost:
    """Return the cost of a best low-rank approximation, through a root of H or W itself and its smaller Gram matrix.

    Args:
        matrix: With its rank.
        tokens: Of the calibration text.
    """
    m, n = matrix.shape
    outputs = 4.0 * m * n**2 if m > n else _outputs(matrix, tokens)
    return Cost(_thin(matrix, tokens) + outputs, (m,) if m <= n else (n, n), _whole(matrix))


def of_rows(matrix: MatrixPlan, tokens: int) -> Cost:
    """Return the cost of choosing rows by the outputs' Gram matrix, and of the coefficients of the others."""
    return Cost(_thin(matrix, tokens) + _outputs(matrix, tokens), (matrix.rank or 0,), _whole(matrix))


def of_both_sides(matrix: MatrixPlan, tokens: int) -> Cost:
    """Return the cost of the best approximation for the inputs and for the loss."""
    m = matrix.shape[0]
    return Cost(_thin(matrix, tokens) + _outputs(matrix, tokens) + 8.0 * m**3, (m, m), _whole(matrix))


def of_selection(matrix: MatrixPlan, tokens: int, *, pivots: bool, bases: bool) -> Cost:
    """Return the cost of C·U·R.

    Args:
        matrix: With its rank.
        tokens: Of the calibration text.
        pivots: Rows and columns are chosen by pivoting.
        bases: They are chosen by leading singular vectors.
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
    """Return the cost of a form that keeps some rows or columns; of another form, that of an approximation."""
    if matrix.form not in _PARTS:
        return cost_of(matrix, tokens)
    (m, n), rank = matrix.shape, matrix.rank or 0
    # Leverage scores by an inverse: the Gram matrix scaled, inverted, and of the kept columns.
    held = 8.0 * (4 * n**2 + 4 * m * n) if matrix.form in _INVERTS else _whole(matrix)
    return Cost(2 * _error(matrix, tokens) + _PARTS[matrix.form](m, n, rank), (), held)


_PARTS: Mapping[str, Callable[[int, int, int], float]] = {
    "modular_rows": lambda m, n, rank: 0.0,
    # Leverage scores by an inverse, and the correction of the kept columns.
    "modular_columns": lambda m, n, rank: 0.7 * n**3 + 2.0 * m * n * rank + rank**3 / 3 + 2.0 * m * rank**2,
    "sparse_rows": lambda m, n, rank: 2.0 * m * n**2,
    "sparse_columns": lambda m, n, rank: 0.0,
}
"""Flops of the forms that keep a part of the weight, besides their errors."""
_INVERTS = ("modular_columns",)


def _error(matrix: MatrixPlan, tokens: int) -> float:
    """Flops of an error in the metric of the inputs: images of the weight's rows, through H or the inputs themselves.

    Inputs are float32, so these count half.
    """
    m, n = matrix.shape
    return float(m * n * tokens) if tokens < n else 2.0 * m * n**2


def _outputs(matrix: MatrixPlan, tokens: int) -> float:
    """Flops of `W H Wᵀ`."""
    m, n = matrix.shape
    return _error(matrix, tokens) + 2.0 * m**2 * n


def _factors(matrix: MatrixPlan) -> float:
    """Flops of decomposing both thin factors."""
    return 4.0 * sum(matrix.shape) * (matrix.rank or 0) ** 2 / LAPACK


def _thin(matrix: MatrixPlan, tokens: int) -> float:
    m, n = matrix.shape
    return _error(matrix, tokens) + 4.0 * m * n * (matrix.rank or 0) + 2 * _factors(matrix)


def _sums(matrix: MatrixPlan) -> float:
    from curconvert.linalg.chunked import CHUNK

    m, n = matrix.shape
    return _SUMS * 8.0 * min(m * n, CHUNK)


def _whole(matrix: MatrixPlan) -> float:
    """Bytes of float64 copies, where a method needs the whole weight."""
    m, n = matrix.shape
    return max(_sums(matrix) + 8.0 * m * n, 8.0 * (4 * m * n + 2 * min(m, n) ** 2))
