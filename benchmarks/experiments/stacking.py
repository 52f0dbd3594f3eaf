"""Tests whether linears with the same input are faster as one product: q/k/v, gate/up or their R factors.

Graphs that only have these products, also quantized, run alternately in onnxruntime on one CPU thread. The weights of
all layers together are larger than the caches, as in a model. CPU time is measured, because other load affects it less.

Decided: q/k/v and gate/up stay separate products, because the large products, which take most of the time, gain nothing
from stacking.
"""

from __future__ import annotations

import itertools
import statistics
import time

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.common import Result, arguments
from benchmarks.experiments.products import random_parts
from curconvert_runtime.format.quantized import ROUNDS_ACTIVATIONS, Layout

# Hidden size, rows of the linears with the same input, layers. R factors of SmolLM2-135M at rank 128, and its matrices;
# R factors of Llama 3.2 1B at rank 256 and 512, and its matrices, of which two layers exceed the caches.
SHAPES = (
    (576, (128, 128, 128), 30),
    (576, (128, 128), 30),
    (576, (576, 192, 192), 30),
    (576, (1536, 1536), 30),
    (2048, (256, 256, 256), 8),
    (2048, (512, 512), 8),
    (2048, (2048, 512, 512), 8),
    (2048, (8192, 8192), 2),
)
LAYOUTS = {"float32": None, "int8": Layout(8, 32, symmetric=True), "int4": Layout(4, 64, symmetric=True)}
TOKENS = (1, 128)


def session(
    width: int, rows: tuple[int, ...], layers: int, layout: Layout | None, *, stacked: bool
) -> ort.InferenceSession:
    """Return a session with each layer's products with one input: as one product and a split, or separate."""
    rng, sums = np.random.default_rng(0), [sum(rows)] if stacked else rows
    nodes, weights, outputs = [], [], []
    for layer in range(layers):
        names = [f"{layer}.{part}" for part in range(len(rows))]
        for name, size in zip(names, rows, strict=True):
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tokens", size]))
        found = [f"{layer}.all"] if stacked else names
        for size, name in zip(sums, found, strict=True):
            operator, parts, attributes = product(rng, (size, width), layout)
            weights += [numpy_helper.from_array(part, f"{name}.{number}") for number, part in enumerate(parts)]
            inputs = ["x", *(f"{name}.{number}" for number in range(len(parts)))]
            nodes.append(helper.make_node(operator, inputs, [name], domain="com.microsoft", **attributes))
        if stacked:
            nodes.append(helper.make_node("Split", [*found, "rows"], names, axis=-1))
    if stacked:
        weights.append(numpy_helper.from_array(np.array(rows), "rows"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", width])
    graph = helper.make_graph(nodes, "products", [x], outputs, weights)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def product(
    rng: np.random.Generator, shape: tuple[int, int], layout: Layout | None
) -> tuple[str, list[NDArray[np.generic]], dict[str, int]]:
    """Return operator, constants and attributes of a product with a random matrix, as in the fused graph."""
    if layout is None:
        return "FusedMatMul", [rng.standard_normal(shape, dtype=np.float32)], {"transB": 1}
    rows, columns = shape
    attributes = {"bits": layout.bits, "block_size": layout.block_size, "accuracy_level": ROUNDS_ACTIVATIONS}
    parts = list(random_parts(rng, layout, shape).values())
    return "MatMulNBits", parts, {"K": columns, "N": rows, **attributes}


def seconds(sessions: list[ort.InferenceSession], x: np.ndarray, rounds: int) -> list[float]:
    """Return each session's median CPU seconds of a run; sessions run alternately."""
    found: list[list[float]] = [[] for _ in sessions]
    for _ in range(rounds):
        for own, times in zip(sessions, found, strict=True):
            start = time.process_time()
            own.run(None, {"x": x})
            times.append(time.process_time() - start)
    return [statistics.median(times) for times in found]


def main() -> None:
    """Measure all shapes and store the figures."""
    parser = arguments("stacking", __doc__)
    parser.add_argument("--rounds", type=int, default=40)
    given = parser.parse_args()
    setting = {"int8": "in blocks of 32", "int4": "in blocks of 64", "rounds": given.rounds}
    result = Result(given.out, setting, threads=1)
    for (width, rows, layers), (stored, layout) in itertools.product(SHAPES, LAYOUTS.items()):
        sessions = [session(width, rows, layers, layout, stacked=stacked) for stacked in (False, True)]
        shape = f"({' + '.join(map(str, rows))}) × {width}"
        for tokens in TOKENS:
            x = np.random.default_rng(1).standard_normal((tokens, width), dtype=np.float32)
            apart, stacked = (value / layers for value in seconds(sessions, x, given.rounds))
            row = {"apart": apart, "stacked": stacked, "faster": apart / stacked}
            result.add("rows", row, shape=shape, weights=stored, tokens=tokens)


if __name__ == "__main__":
    main()
