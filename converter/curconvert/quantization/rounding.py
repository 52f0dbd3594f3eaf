"""Quantizes a matrix to integers, scales and zero points: round to nearest, or GPTQ's error feedback.

All arithmetic is float64: error feedback corrects each column by the errors of the columns before it, divided by pivots
of H⁻¹ whose range is the condition number of H. Rows are independent, so a few at a time keep memory small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from curconvert.base.errors import InputError
from curconvert.base.packing import pack, split
from curconvert.base.types import Matrix, Vector
from curconvert.blocks.quantized import Quantized
from curconvert.linalg.chunked import ChunkedMatrix
from curconvert_runtime.format.quantized import Layout

DAMPING = 0.01  # share of the mean diagonal that is added to H, as in GPTQ (arXiv 2210.17323, §3.3)
_LAZY = 64  # the errors of this many columns reach the later columns in one product
_SHRINKS = np.linspace(1.0, 0.6, 11)  # the scale search tries these multiples of the scale that clips nothing


def quantize(name: str, weight: Tensor, layout: Layout, gram: Matrix | None = None) -> Quantized:
    """Quantize a matrix.

    Args:
        name: For messages.
        weight: W, (m, n), any float dtype.
        layout: Bits, block size and symmetry of the result.
        gram: H of W's input, (n, n): error feedback then keeps `tr((W − Ŵ) H (W − Ŵ)ᵀ)` small (GPTQ). None selects
            round to nearest.

    Raises:
        InputError: W has a number that is not finite, or its scales do not fit their dtype.
    """
    _check_range(name, weight, layout)
    m, n = weight.shape
    feedback = None if gram is None else Feedback.of(gram)
    blocks = layout.blocks(n)
    q = np.empty((m, blocks, layout.block_size), np.uint8)
    scales, zeros = np.empty((m, blocks), np.float32), np.empty((m, blocks), np.uint8)
    for rows, part in ChunkedMatrix(weight).chunks():
        if not np.isfinite(part).all():
            raise InputError(f"{name}: holds NaN or infinity; the checkpoint is damaged")
        grids = _Grids(scales[rows], zeros[rows], q[rows], layout)
        if feedback is None:
            _nearest(part, grids)
        else:
            _with_feedback(part, feedback, grids)
    step = np.uint8(_step(layout))
    stored = (scales / np.float32(step)).astype(layout.scale_dtype)
    parts: dict[str, NDArray[Any]] = {**split(pack(q * step, layout), layout), "scales": stored}
    if not layout.symmetric:
        parts["zeros"] = pack(zeros * step, layout)
    return Quantized((m, n), layout, {suffix: torch.from_numpy(np.ascontiguousarray(p)) for suffix, p in parts.items()})


@dataclass(frozen=True)
class Feedback:
    """Holds what error feedback needs of a Gram matrix H.

    Attributes:
        order: Order in which columns are rounded, (n,): by their inputs' mean squares, the largest first.
        pivots: T, upper triangular, with `(H + δI)⁻¹ = Tᵀ T` in that order; δ is a share of the mean of H's diagonal.
        energies: H's diagonal, in the original order of columns.
    """

    order: NDArray[np.int64]
    pivots: Matrix
    energies: Vector

    @classmethod
    def of(cls, gram: Matrix, damping: float = DAMPING) -> Feedback:
        """Factor H.

        A feature that is always zero gets the mean of the diagonal: its column has no effect and feeds nothing back.

        Args:
            gram: H, (n, n) symmetric positive semi-definite.
            damping: δ as a share of the mean diagonal.
        """
        energies = np.diag(gram).copy()
        order = np.argsort(-energies, kind="stable")
        mean = float(energies.mean())
        added = np.where(energies > 0, damping * mean, mean) if mean > 0 else np.ones_like(energies)
        whole = (gram + np.diag(added))[np.ix_(order, order)]
        # Factor H from its end, H = P Pᵀ with P upper triangular; then T = P⁻¹, and H⁻¹ is never formed.
        factor = scipy.linalg.cholesky(whole[::-1, ::-1], lower=True, check_finite=False)
        inverse = scipy.linalg.solve_triangular(factor, np.eye(len(whole)), lower=True, check_finite=False)
        return cls(order, np.ascontiguousarray(inverse[::-1, ::-1]), energies)


@dataclass(frozen=True)
class _Grids:
    """Receives the scales, zero points and integers of some rows, block by block.

    Attributes:
        scales: (rows, blocks) float32.
        zeros: (rows, blocks) uint8.
        integers: (rows, blocks, block_size) uint8.
        layout: Bits, block size and symmetry.
    """

    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8]
    integers: NDArray[np.uint8]
    layout: Layout

    def columns(self, count: int) -> list[slice]:
        """Return the columns of each block; `count` is the number of all columns."""
        step = self.layout.block_size
        return [slice(start, min(start + step, count)) for start in range(0, count, step)]

    def open(self, block: int, scale: Vector, zero: Vector) -> None:
        """Set a block's scales and zero points; its padding represents 0."""
        self.scales[:, block], self.zeros[:, block] = scale, zero
        self.integers[:, block] = self.zeros[:, block, None]

    def put(self, block: int, place: int, values: Matrix) -> Matrix:
        """Round some columns of a block, (rows, k), starting at `place`, and return the values of the integers."""
        scale, zero = self.scales[:, block, None].astype(np.float64), self.zeros[:, block, None]
        q = _integers(values, scale, zero, self.layout)
        self.integers[:, block, place : place + values.shape[1]] = q
        return np.asarray(scale * (q - zero))


def _integers(values: Matrix, scale: Matrix, zero: NDArray[Any], layout: Layout) -> Matrix:
    return np.asarray(np.clip(np.rint(values / scale) + zero, 0, _largest(layout)))


def _nearest(W: Matrix, grids: _Grids) -> None:
    """Round each number on its own (round to nearest), with the scales of `widest`."""
    for block, columns in enumerate(grids.columns(W.shape[1])):
        part = W[:, columns]
        grids.open(block, *widest(part, grids.layout))
        grids.put(block, 0, part)


def _with_feedback(W: Matrix, feedback: Feedback, grids: _Grids) -> None:
    """Round column by column, and correct later columns for the errors of earlier ones (GPTQ, algorithm 1).

    Columns with the largest inputs come first, while all other columns can still correct their errors. A block's
    columns are therefore not rounded together. Its scale is searched before, on the original columns, with errors
    weighted by the inputs.

    Args:
        W: (m, n).
        feedback: Feedback of H.
        grids: Receives the result.
    """
    size, diagonal = grids.layout.block_size, np.diag(feedback.pivots)
    for block, columns in enumerate(grids.columns(W.shape[1])):
        grids.open(block, *searched(W[:, columns], feedback.energies[columns], grids.layout))
    due = W[:, feedback.order]
    for start in range(0, W.shape[1], _LAZY):
        stop = min(start + _LAZY, W.shape[1])
        lost = np.empty((len(W), stop - start))
        for index in range(start, stop):
            block, place = divmod(int(feedback.order[index]), size)
            kept = grids.put(block, place, due[:, index, None])
            error = (due[:, index] - kept[:, 0]) / diagonal[index]
            lost[:, index - start] = error
            due[:, index + 1 : stop] -= np.outer(error, feedback.pivots[index, index + 1 : stop])
        due[:, stop:] -= lost @ feedback.pivots[start:stop, stop:]


def widest(part: Matrix, layout: Layout) -> tuple[Vector, Vector]:
    """Return the smallest scale of each row that clips nothing, with its zero point: (rows,) each.

    From a constant zero point, integers reach one further down than up, so a negative scale may be the smaller one.

    Args:
        part: One block of some rows, (rows, k).
        layout: Bits, block size and symmetry.
    """
    high, low = np.maximum(part.max(axis=1), 0.0), np.maximum(-part.min(axis=1), 0.0)
    if layout.symmetric:
        down = 2 ** (layout.bits - 1)
        up = _largest(layout) - down
        upright, turned = np.maximum(high / up, low / down), np.maximum(low / up, high / down)
        return _safe(np.where(turned < upright, -turned, upright), layout), np.full(len(part), float(down))
    scale = _safe((high + low) / _largest(layout), layout)
    return scale, np.clip(np.rint(low / scale), 0, _largest(layout))


def searched(part: Matrix, costs: Vector, layout: Layout) -> tuple[Vector, Vector]:
    """Return the scale of each row with the least error `Σ cost·(w − ŵ)²` among reduced scales, and its zero point.

    With 8 bits it returns the result of `widest`: clipping never pays.

    Args:
        part: One block of some rows, (rows, k).
        costs: Cost of an error in each column, (k,).
        layout: Bits, block size and symmetry.
    """
    widest_scale, zero = widest(part, layout)
    if layout.bits > 4:
        return widest_scale, zero
    best, least = widest_scale.copy(), np.full(len(part), np.inf)
    for signed in (widest_scale, -widest_scale) if layout.symmetric else (widest_scale,):
        for shrink in _SHRINKS:
            scale = _safe(shrink * signed, layout)
            error = scale[:, None] * (_integers(part, scale[:, None], zero[:, None], layout) - zero[:, None]) - part
            cost = (error * error) @ costs
            better = cost < least
            best[better], least[better] = scale[better], cost[better]
    return best, zero


def _largest(layout: Layout) -> int:
    """Return the largest integer of a layout."""
    return int(2**layout.bits - 1)


def _step(layout: Layout) -> int:
    """Return the distance of neighboring values among the operator's integers, whose lowest bits are not stored."""
    return int(2 ** (layout.served - layout.bits))


def _safe(scale: Vector, layout: Layout) -> Vector:
    """Round scales up to their stored dtype, so that nothing is clipped; a block of zeros gets 1."""
    exact = scale / _step(layout)
    stored = exact.astype(layout.scale_dtype)
    short = np.abs(stored.astype(np.float64)) < np.abs(exact)
    rounded = np.where(short, np.nextafter(stored, np.copysign(np.inf, stored)), stored)
    return np.where(scale == 0, 1.0, rounded.astype(np.float64) * _step(layout))


def _check_range(name: str, weight: Tensor, layout: Layout) -> None:
    """Raise `InputError` if a scale could overflow, or if rounding the largest one up could cost more than 1%."""
    largest, kind = max(float(weight.max()), -float(weight.min())), np.finfo(layout.scale_dtype)
    scale = largest / (2 ** (layout.bits - 1) - 1) / _step(layout)
    fault = (
        "small" if 0 < scale < 100 * float(kind.smallest_subnormal) else "large" if scale >= float(kind.max) else None
    )
    if fault and np.isfinite(largest):
        advice = "" if layout.scale_dtype == "float32" else "; give --scale-dtype float32"
        raise InputError(f"{name}: its largest weight, {largest:.4g}, is too {fault} for {kind.dtype} scales{advice}")
