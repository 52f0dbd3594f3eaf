"""The layout of quantized matrices, against numbers written out by hand and against onnxruntime's own kernels."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from curconvert.base.packing import dequantize, pack, packed_bytes, split, unpack
from curconvert_runtime.format.quantized import BITS, BLOCK_SIZES, KEEPS_ACTIVATIONS, ROUNDS_ACTIVATIONS, Layout
from support.onnx_writer import FLOAT, INT64, Graph, Node, Tensor, Value, node

M, N = 5, 150  # the last block is padded, whatever its size, and blocks of 64 and 32 are odd in number
LAYOUTS = [Layout(*values) for values in itertools.product(BITS, BLOCK_SIZES, (True, False), ("float32", "float16"))]
OF_OPERATORS = [layout for layout in LAYOUTS if layout.bits in (4, 8) and layout.scale_dtype == "float32"]
# Planes of each width, as places of their bits in an operator's integer, lowest first; and the operator's bits.
PLANES = {
    3: ([(2, 3), (1,)], 4), 4: ([(0, 1, 2, 3)], 4), 5: ([(4, 5, 6, 7), (3,)], 8), 6: ([(4, 5, 6, 7), (2, 3)], 8),
    7: ([(4, 5, 6, 7), (2, 3), (1,)], 8), 8: ([tuple(range(8))], 8),
}  # fmt: skip


def in_bytes(values: NDArray[np.uint8], served: int) -> NDArray[np.uint8]:
    """Two integers of 4 bits to a byte, the first one low; of 8 bits one."""
    if served == 8:
        return values
    rows = values.reshape(-1, values.shape[-1]).tolist()
    packed = [
        [low | high << 4 for low, high in itertools.zip_longest(row[::2], row[1::2], fillvalue=0)] for row in rows
    ]
    return np.array(packed, np.uint8).reshape(*values.shape[:-1], -1)


def plane(values: NDArray[np.uint8], places: tuple[int, ...], served: int) -> NDArray[np.uint8]:
    """Store one plane bit by bit, in the order of the format's page."""
    size, whole = len(places), in_bytes(values, served)
    found = np.zeros((*whole.shape[:-1], whole.shape[-1] * size // served), np.uint8)
    length = found.shape[-1]
    for index in np.ndindex(whole.shape):
        piece, byte = divmod(index[-1], length)
        for lane, (number, place) in itertools.product(range(0, 8, served), enumerate(places)):
            bit = int(whole[index]) >> (lane + place) & 1
            found[(*index[:-1], byte)] |= bit << (lane + size * piece + number)
    return found


def draw(layout: Layout) -> tuple[dict[str, NDArray[np.generic]], NDArray[np.float64]]:
    """Draw integers, scales and zero points, and return their parts and, in float64, what they stand for."""
    rng = np.random.default_rng(layout.bits + layout.block_size)
    blocks = layout.blocks(N)
    planes, served = PLANES[layout.bits]
    q = (rng.integers(0, 2**layout.bits, (M, blocks, layout.block_size)) << served - layout.bits).astype(np.uint8)
    scales = rng.standard_normal((M, blocks)).astype(layout.scale_dtype)
    zeros = np.full((M, blocks), {4: 8, 8: 128}[served], np.uint8)
    if not layout.symmetric:
        zeros = rng.integers(0, 2**served, (M, blocks)).astype(np.uint8)
    parts: dict[str, NDArray[np.generic]] = {
        name: plane(q, places, served) for name, places in zip(("q", "q1", "q2"), planes, strict=False)
    }
    parts["scales"] = scales
    if not layout.symmetric:
        parts["zeros"] = in_bytes(zeros, served)
    wide = (q.astype(np.float64) - zeros[..., None]) * scales[..., None]
    return parts, wide.reshape(M, -1)[:, :N]


def run(operator: Node, inputs: dict[str, NDArray[Any]], fed: str) -> NDArray[np.float32]:
    """Run one operator of onnxruntime whose other inputs are constants."""
    constants = [Tensor.of(name, value) for name, value in inputs.items() if name != fed]
    given = Value(fed, {"float32": FLOAT, "int64": INT64}[str(inputs[fed].dtype)], inputs[fed].shape)
    graph = Graph([operator], [given], [Value("y", FLOAT, None)], constants)
    session = onnxruntime.InferenceSession(graph.encode(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {fed: inputs[fed]})
    return np.asarray(found)


def test_integers_lie_in_order() -> None:
    """Of 4 bits two to a byte, the first one low; an odd row ends with half a byte; of 8 bits one."""
    layout = Layout(4, 32, False)
    assert unpack(np.array([[0x21, 0x03], [0x54, 0x06]], np.uint8), layout, 3).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert unpack(np.array([[0x1A, 0x2B]], np.uint8), Layout(8, 32, True), 2).tolist() == [[0x1A, 0x2B]]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_parts_stand_for_scaled_differences(layout: Layout) -> None:
    """s·(q − z), rounded once to float32, padding cut off; some rows alone give the same."""
    parts, expected = draw(layout)
    found = dequantize(parts, N, layout)
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    np.testing.assert_array_equal(dequantize(parts, N, layout, slice(1, 3)), found[1:3])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_stated_sizes_are_those_of_the_parts(layout: Layout) -> None:
    """Names, dtypes and shapes of every part."""
    parts, _ = draw(layout)
    kinds = {"U8": np.uint8, "F32": np.float32, "F16": np.float16}
    said = {suffix: (kinds[kind], shape) for suffix, (kind, shape) in layout.parts((M, N)).items()}
    assert said == {suffix: (part.dtype, part.shape) for suffix, part in parts.items()}
    assert packed_bytes(layout, (M, N)) == sum(part.nbytes for part in parts.values())
    numbers = M * layout.blocks(N) * layout.block_size
    assert sum(parts[suffix].size for suffix in layout.planes) == numbers * layout.bits / 8


@pytest.mark.parametrize("bits", BITS)
def test_planes_are_written_bit_by_bit(bits: int) -> None:
    """Each bit at the place that the format's page gives; the bits that are not stored do not matter."""
    layout, (planes, served) = Layout(bits, 32, True), PLANES[bits]
    values = np.random.default_rng(bits).integers(0, 2**served, (3, 2, 32)).astype(np.uint8)
    found = split(pack(values, layout), layout)
    assert list(found) == ["q", "q1", "q2"][: len(planes)]
    for stored, places in zip(found.values(), planes, strict=True):
        np.testing.assert_array_equal(stored, plane(values, places, served))


def multiplied(x: NDArray[np.float32], parts: dict[str, NDArray[np.generic]], layout: Layout, level: int) -> Any:
    """Return what MatMulNBits gives at a level of accuracy."""
    inputs = {"x": x, "q": parts["q"], "s": parts["scales"]}
    if not layout.symmetric:
        inputs["z"] = parts["zeros"]
    attributes = {"K": N, "N": M, "bits": layout.bits, "block_size": layout.block_size, "accuracy_level": level}
    return run(node("MatMulNBits", list(inputs), ["y"], "com.microsoft", **attributes), inputs, "x")


@pytest.mark.parametrize("layout", OF_OPERATORS, ids=str)
def test_onnxruntime_multiplies_what_the_parts_stand_for(layout: Layout) -> None:
    """In float32 as exactly as float32 is; with rounded activations each is off by half of a 127th of its block."""
    parts, weight = draw(layout)
    x = np.random.default_rng(0).standard_normal((3, N)).astype(np.float32)
    expected = x.astype(np.float64) @ weight.T
    exact = multiplied(x, parts, layout, KEEPS_ACTIVATIONS)
    np.testing.assert_allclose(exact, expected, atol=1e-5 * np.abs(expected).max())
    starts = np.arange(0, N, layout.block_size)
    half_steps = np.maximum.reduceat(np.abs(x), starts, axis=1) / 254
    off = half_steps @ np.add.reduceat(np.abs(weight), starts, axis=1).T
    rounded = multiplied(x, parts, layout, ROUNDS_ACTIVATIONS)
    assert (np.abs(rounded - expected) <= 1.001 * off + 1e-5).all()
    assert np.abs(rounded - expected).max() > 10 * np.abs(exact - expected).max()


@pytest.mark.parametrize("layout", OF_OPERATORS, ids=str)
def test_onnxruntime_looks_up_what_the_parts_stand_for(layout: Layout) -> None:
    """GatherBlockQuantized takes the same bytes, in rows, and gives the padding too."""
    parts, weight = draw(layout)
    ids = np.array([[4, 0], [2, 2]])
    inputs = {"q": parts["q"].reshape(M, -1), "i": ids, "s": parts["scales"]}
    if not layout.symmetric:
        inputs["z"] = parts["zeros"]
    attributes = {"gather_axis": 0, "quantize_axis": 1, "bits": layout.bits, "block_size": layout.block_size}
    operator = node("GatherBlockQuantized", list(inputs), ["y"], "com.microsoft", **attributes)
    np.testing.assert_allclose(run(operator, inputs, "i")[..., :N], weight[ids], rtol=1e-5, atol=1e-5)
