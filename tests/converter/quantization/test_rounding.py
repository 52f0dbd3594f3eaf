"""Rounding, against NumPy in float64 that is written out number by number."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from curconvert.base.errors import InputError
from curconvert.blocks.quantized import Quantized
from curconvert.quantization.rounding import DAMPING, quantize, searched, widest
from curconvert_runtime.format.quantized import BITS, BLOCK_SIZES, Layout

M, N = 12, 150
LAYOUTS = [Layout(*values) for values in itertools.product(BITS, BLOCK_SIZES, (True, False), ("float32", "float16"))]
STEPS = {3: 2, 4: 1, 5: 8, 6: 4, 7: 2, 8: 1}  # of an operator's integer, from one stored integer to the next
Matrix = NDArray[np.float64]


@pytest.fixture(scope="module")
def weight() -> Matrix:
    """Rows of different sizes, one that is zero, one without negative numbers."""
    rng = np.random.default_rng(0)
    found = rng.standard_t(4, (M, N)) * np.exp(rng.standard_normal((M, 1)))
    found[3] = 0.0
    found[5] = np.abs(found[5])
    return found


@pytest.fixture(scope="module")
def gram() -> Matrix:
    """Correlated inputs of different sizes; one feature is always zero."""
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((400, 40)) @ rng.standard_normal((40, N)) + 0.5 * rng.standard_normal((400, N))
    inputs *= np.exp(rng.standard_normal(N))
    inputs[:, 7] = 0.0
    return inputs.T @ inputs / len(inputs)


def lost(weight: Matrix, found: Quantized, gram: Matrix) -> float:
    """Return tr((W − Ŵ) H (W − Ŵ)ᵀ)."""
    error = weight - found.rows().numpy()
    return float(np.trace(error @ gram @ error.T))


def scales_of(found: Quantized) -> Matrix:
    """Return the distance of neighboring values at every number, (M, N)."""
    scales = found.parts["scales"].numpy().astype(np.float64) * STEPS[found.layout.bits]
    return np.repeat(scales, found.layout.block_size, axis=1)[:, :N]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_nearest_is_within_half_a_step(weight: Matrix, layout: Layout) -> None:
    """Nothing is clipped: no number is further from its own than half a scale; with a rounded zero point, one."""
    found = quantize("w", torch.from_numpy(weight), layout)
    steps = np.abs(weight - found.rows().numpy()) / np.abs(scales_of(found))
    assert steps.max() <= (0.5 if layout.symmetric else 1.0) + 1e-5
    assert np.array_equal(found.rows().numpy()[3], np.zeros(N))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_nearest_has_the_smallest_scale_that_clips_nothing(weight: Matrix, layout: Layout) -> None:
    """By hand: the larger side of a symmetric block takes the longer side of the integers."""
    part = weight[:, : layout.block_size]
    scale, zero = widest(part, layout)
    for row, (values, s, z) in enumerate(zip(part, scale, zero, strict=True)):
        if row == 3:
            continue
        high, low = max(values.max(), 0.0), max(-values.min(), 0.0)
        if layout.symmetric:
            down, up = 2 ** (layout.bits - 1), 2 ** (layout.bits - 1) - 1
            expected = min(max(high / up, low / down), max(high / down, low / up))
            assert z == down
        else:
            expected = (high + low) / (2**layout.bits - 1)
            assert z == round(low / abs(s))
        rounded = {"float32": 2.0**-22, "float16": 2.0**-9}[layout.scale_dtype]
        assert expected * (1 - 1e-12) <= abs(s) <= expected * (1 + rounded)
        stored = np.float64(s) / STEPS[layout.bits]
        assert np.dtype(layout.scale_dtype).type(stored) == stored


def plain_gptq(weight: Matrix, gram: Matrix, layout: Layout, scales: Matrix, zeros: Matrix) -> NDArray[np.int64]:
    """GPTQ with H⁻¹ itself, one column and one elimination at a time (Optimal Brain Quantization's formula)."""
    damped = gram.copy()
    mean = np.diag(gram).mean()
    for index in range(N):
        damped[index, index] += DAMPING * mean if gram[index, index] > 0 else mean
    inverse, rest = np.linalg.inv(damped), weight.copy()
    q = np.zeros((M, N), np.int64)
    for column in sorted(range(N), key=lambda index: (-gram[index, index], index)):
        block = column // layout.block_size
        for row in range(M):
            integer = round(rest[row, column] / scales[row, block]) + zeros[row, block]
            q[row, column] = min(max(integer, 0), 2**layout.bits - 1)
            kept = scales[row, block] * (q[row, column] - zeros[row, block])
            rest[row] -= (rest[row, column] - kept) / inverse[column, column] * inverse[column]
        inverse = inverse - np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return q


@pytest.mark.parametrize(
    "layout",
    [
        Layout(4, 64, True), Layout(4, 32, False), Layout(8, 128, True), Layout(3, 32, False, "float16"),
        Layout(6, 64, True, "float16"),
    ],
    ids=str,
)  # fmt: skip
def test_feedback_is_gptq(weight: Matrix, gram: Matrix, layout: Layout) -> None:
    """The integers are those of a plain loop over columns, by falling input, with the same scales."""
    found = quantize("w", torch.from_numpy(weight), layout, gram)
    blocks = layout.blocks(N)
    step = STEPS[layout.bits]
    scales = found.parts["scales"].numpy().astype(np.float64) * step
    zeros = np.full((M, blocks), 2 ** (layout.bits - 1))
    if not layout.symmetric:
        packed = found.parts["zeros"].numpy()
        zeros = np.stack([packed & 15, packed >> 4], axis=-1).reshape(M, -1)[:, :blocks].astype(np.int64) // step
    expected = plain_gptq(weight, gram, layout, scales, zeros)
    columns = np.arange(N) // layout.block_size
    np.testing.assert_allclose(found.rows().numpy(), scales[:, columns] * (expected - zeros[:, columns]), rtol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_feedback_is_no_worse_than_nearest(weight: Matrix, gram: Matrix, layout: Layout) -> None:
    """In the metric that it is made for."""
    ours = lost(weight, quantize("w", torch.from_numpy(weight), layout, gram), gram)
    assert ours <= 0.8 * lost(weight, quantize("w", torch.from_numpy(weight), layout), gram)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_searched_scale_is_no_worse_than_the_widest(weight: Matrix, symmetric: bool) -> None:
    """The weighted squared error of each row, with integers by hand."""
    layout = Layout(4, 64, symmetric)
    part, costs = weight[:, :64], np.random.default_rng(2).random(64)

    def errors(scale: Matrix, zero: Matrix) -> Matrix:
        q = np.clip(np.rint(part / scale[:, None]) + zero[:, None], 0, 15)
        return ((scale[:, None] * (q - zero[:, None]) - part) ** 2 * costs).sum(axis=1)

    wide, found = errors(*widest(part, layout)), errors(*searched(part, costs, layout))
    assert (found <= wide + 1e-12).all()
    assert (found < wide).any()


def test_some_rows_are_those_of_the_whole(weight: Matrix) -> None:
    """By numbers, in any order, and by a slice."""
    found = quantize("w", torch.from_numpy(weight), Layout(8, 32, False))
    whole = found.rows()
    assert torch.equal(found[torch.tensor([7, 0, 7])], whole[[7, 0, 7]])
    assert torch.equal(found.rows(slice(2, 5)), whole[2:5])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(value: float) -> None:
    """By name."""
    weight = torch.ones(2, 40)
    weight[1, 3] = value
    with pytest.raises(InputError, match=r"the\.weight: holds NaN or infinity"):
        quantize("the.weight", weight, Layout(4, 32, True))


@pytest.mark.parametrize(
    ("layout", "largest", "words"),
    [
        (Layout(8, 32, True, "float16"), 1e7, "1e[+]07, is too large for float16 scales; give --scale-dtype float32"),
        (Layout(3, 32, True, "float16"), 1e6, "too large for float16 scales; give --scale-dtype float32"),
        (Layout(6, 64, False, "float16"), 1e-4, "0.0001, is too small for float16 scales; give --scale-dtype float32"),
        (Layout(4, 64, True), 1e40, "too large for float32 scales$"),
    ],
    ids=str,
)
def test_a_matrix_that_scales_cannot_describe_is_refused(layout: Layout, largest: float, words: str) -> None:
    """With advice that helps: scales of 32 bits can."""
    weight = torch.linspace(-1, 1, 128, dtype=torch.float64).reshape(2, 64) * largest
    with pytest.raises(InputError, match=words):
        quantize("w", weight, layout)
    if "give" in words:
        found = quantize("w", weight, replace(layout, scale_dtype="float32"))
        assert np.abs(found.rows().numpy() - weight.numpy()).max() <= largest / 2 ** (layout.bits - 1)


def test_small_blocks_of_a_larger_matrix_are_not_clipped() -> None:
    """Their scales are below the smallest normal number of 16 bits, and rounded up."""
    weight = torch.linspace(-1, 1, 64, dtype=torch.float64).reshape(1, 64).repeat(4, 1)
    weight *= torch.tensor([[1.0], [1e-3], [1e-5], [1e-7]], dtype=torch.float64)
    found = quantize("w", weight, Layout(8, 64, True, "float16"))
    scales = np.abs(found.parts["scales"].numpy().astype(np.float64))
    assert (np.abs(found.rows().numpy() - weight.numpy()) <= 0.5001 * scales).all()
    assert (scales >= weight.abs().amax(dim=1, keepdim=True).numpy() / 128).all()


def test_inputs_that_are_all_zero_leave_rounding_to_the_nearest(weight: Matrix) -> None:
    """Nothing is known then, and nothing fails."""
    layout = Layout(8, 32, True)
    found = quantize("w", torch.from_numpy(weight), layout, np.zeros((N, N)))
    assert torch.equal(found.rows(), quantize("w", torch.from_numpy(weight), layout).rows())
