"""Compares onnxruntime's quantized products of one row with a float32 one, by bits, block size and accuracy level.

Products run alternately, and between them more memory is read than the caches hold. CPU seconds of one thread count.
Then each product runs many times in a row. The time that it saves then is the time that it waited for memory before.

Decided: quantized products round the activations to 8 bits (accuracy level 4), because with float32 activations int8 is
slower than float32 weights and int4 is a third as fast.
"""

from __future__ import annotations

import time

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.common import Result, arguments
from curconvert.base.machine import MemoryReader
from curconvert.base.packing import dequantize
from curconvert_runtime.format.quantized import BLOCK_SIZES, KEEPS_ACTIVATIONS, ROUNDS_ACTIVATIONS, Layout

REPEATS = 25
Key = tuple[str, int, bool, int]  # type, block size, whether it has zero points, accuracy level
BASE: Key = ("float32", 0, False, 0)


class Product:
    """An operator on a constant matrix, (m, n).

    Args:
        operator: Type of the operator; its first input is x.
        constants: Its other inputs.
        shape: (m, n).
        **attributes: Attributes of the operator.
    """

    def __init__(
        self, operator: str, constants: dict[str, NDArray[np.generic]], shape: tuple[int, int], **attributes: int
    ) -> None:
        self.nbytes = sum(value.nbytes for value in constants.values())
        node = helper.make_node(operator, ["x", *constants], ["y"], domain="com.microsoft", **attributes)
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size])
            for name, size in (("x", shape[1]), ("y", shape[0]))
        ]
        stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
        graph = helper.make_graph([node], "product", ends[:1], ends[1:], stored)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
        self._session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the product."""
        return np.asarray(self._session.run(None, {"x": x})[0])


def random_parts(rng: np.random.Generator, layout: Layout, shape: tuple[int, int]) -> dict[str, NDArray[np.generic]]:
    """Return the stored parts of a quantized matrix of random integers and scales."""
    return {
        name: rng.random(size, np.float32) if kind == "F32" else rng.integers(0, 256, size, np.uint8)
        for name, (kind, size) in layout.parts(shape).items()
    }


def quantized(layout: Layout, level: int, shape: tuple[int, int]) -> tuple[Product, NDArray[np.float32]]:
    """Return a quantized product of random integers, and its matrix."""
    parts = random_parts(np.random.default_rng(0), layout, shape)
    attributes = {"K": shape[1], "N": shape[0], "bits": layout.bits, "block_size": layout.block_size}
    return Product("MatMulNBits", parts, shape, accuracy_level=level, **attributes), dequantize(parts, shape[1], layout)


def spent(product: Product, x: NDArray[np.float32]) -> float:
    """Return the CPU seconds of a product."""
    begin = time.process_time()
    product(x)
    return time.process_time() - begin


def main() -> None:
    """Measure every product and store the figures."""
    parser = arguments("products", __doc__)
    parser.add_argument("--shape", type=int, nargs=2, default=[8192, 2048], help="outputs and inputs")
    parser.add_argument("--rounds", type=int, default=25)
    given = parser.parse_args()
    m, n = given.shape
    rng = np.random.default_rng(1)
    x, weight = rng.standard_normal((1, n), np.float32), rng.standard_normal((m, n), np.float32)
    products: dict[Key, Product] = {BASE: Product("FusedMatMul", {"w": weight}, (m, n), transB=1)}
    matrices: dict[Key, NDArray[np.float32]] = {BASE: weight}
    for bits in (8, 4):
        for level in (ROUNDS_ACTIVATIONS, KEEPS_ACTIVATIONS):
            for block in BLOCK_SIZES:
                for symmetric in (True, False):
                    key = (f"int{bits}", block, not symmetric, level)
                    products[key], matrices[key] = quantized(Layout(bits, block, symmetric), level, (m, n))
    reader = MemoryReader(1)
    seconds: dict[Key, list[float]] = {key: [] for key in products}
    for _ in range(given.rounds):
        for key, product in products.items():
            reader.read_once()
            seconds[key].append(spent(product, x))
    setting = {
        "matrix": f"{m} × {n}", "rounds": given.rounds, "cached": f"{REPEATS} times at once",
        "read, GB/s": round(reader.bytes_per_second() / 1e9, 1),
    }  # fmt: skip
    result = Result(given.out, setting, threads=1)
    for key, product in products.items():
        own, again = float(np.median(seconds[key])), float(np.median([spent(product, x) for _ in range(REPEATS)]))
        speedup = float(np.median(seconds[BASE])) / own
        exact = x.astype(np.float64) @ matrices[key].T.astype(np.float64)
        error = float(np.linalg.norm(product(x) - exact) / np.linalg.norm(exact))
        bytes_say = products[BASE].nbytes / product.nbytes
        weights, size, zero_points, level = key
        named: dict[str, str | int] = {"weights": weights}
        if key != BASE:
            named |= {"block": size, "zero_points": "yes" if zero_points else "no", "level": level}
        row = {
            "rate": product.nbytes / own, "cached": product.nbytes / again, "speedup": speedup, "bytes_say": bytes_say,
            "by_bytes": speedup / bytes_say, "error": error,
        }  # fmt: skip
        result.add("products", row, **named)


if __name__ == "__main__":
    main()
