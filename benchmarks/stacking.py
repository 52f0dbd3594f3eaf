"""Whether linears that read one input are faster as one product: R factors of q/k/v and gate/up, apart and stacked.

Graphs of nothing but these products run under onnxruntime on one CPU thread, in turns; the weights of all layers
together are larger than the caches, as in a model. CPU time, so that other work on the machine shows little.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import onnx
import onnxruntime as ort
from common import machine, publish, table
from onnx import TensorProto, helper, numpy_helper

# Hidden size, numbers of rows that share the input, layers: SmolLM2-135M at rank 128, Llama 3.2 1B at rank 256 and 512.
SHAPES = (
    (576, (128, 128, 128), 30),
    (576, (128, 128), 30),
    (2048, (256, 256, 256), 8),
    (2048, (512, 512), 8),
)
TOKENS = (1, 128)


def session(width: int, rows: tuple[int, ...], layers: int, *, stacked: bool) -> ort.InferenceSession:
    """Build each layer's products with one input, as one product and a split of its result or apart."""
    rng, sums = np.random.default_rng(0), [sum(rows)] if stacked else rows
    nodes, weights, outputs = [], [numpy_helper.from_array(np.array(rows), "rows")], []
    for layer in range(layers):
        names = [f"{layer}.{part}" for part in range(len(rows))]
        for name, size in zip(names, rows, strict=True):
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tokens", size]))
        found = [f"{layer}.all"] if stacked else names
        for size, name in zip(sums, found, strict=True):
            weight = rng.standard_normal((width, size), dtype=np.float32)
            weights.append(numpy_helper.from_array(weight, f"{name}.weight"))
            nodes.append(helper.make_node("MatMul", ["x", f"{name}.weight"], [name]))
        if stacked:
            nodes.append(helper.make_node("Split", [*found, "rows"], names, axis=-1))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", width])
    graph = helper.make_graph(nodes, "products", [x], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def seconds(sessions: list[ort.InferenceSession], x: np.ndarray, rounds: int) -> list[float]:
    """Return each session's median CPU seconds of a run, in turns."""
    found: list[list[float]] = [[] for _ in sessions]
    for _ in range(rounds):
        for own, times in zip(sessions, found, strict=True):
            start = time.process_time()
            own.run(None, {"x": x})
            times.append(time.process_time() - start)
    return [statistics.median(times) for times in found]


def main() -> None:
    """Measure, publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    given = parser.parse_args()
    lines = []
    for width, rows, layers in SHAPES:
        sessions = [session(width, rows, layers, stacked=stacked) for stacked in (False, True)]
        shape = f"{len(rows)} × {rows[0]} × {width}"
        for tokens in TOKENS:
            x = np.random.default_rng(1).standard_normal((tokens, width), dtype=np.float32)
            apart, stacked = (value / layers * 1e6 for value in seconds(sessions, x, given.rounds))
            lines.append([shape, f"{tokens}", f"{apart:.0f}", f"{stacked:.0f}", f"{apart / stacked:.2f}"])
    publish(
        "stacking",
        f"""Products of one input with several R factors, apart and stacked into one product with a split after it;
random float32 weights, one thread, medians of {given.rounds} rounds in turns. {machine()}.

{table(["factors", "tokens", "apart, µs a layer", "stacked", "times as fast stacked"], lines)}

Made by `python benchmarks/stacking.py`.
""",
    )


if __name__ == "__main__":
    main()
