"""Compares two ways to reorder outputs in a graph: Gather, and GatherElements with an order for every token.

Interpolative factors compute the outputs of the kept rows first, then the others. A graph restores the original order.

Decided: the graphs use Expand and GatherElements, because Gather is slower, by up to ten times.
"""

from __future__ import annotations

import time

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from benchmarks.common import Result, arguments

WIDTHS = (576, 2048, 8192)
TOKENS = (1, 128)


class Ordering:
    """A graph that reorders the last axis of (1, tokens, width).

    Args:
        nodes: Nodes that compute y from x and `order`; `tokens` is (1, tokens, 1).
        order: The order.
        tokens: Number of tokens.
    """

    def __init__(self, nodes: list[NodeProto], order: NDArray[np.int32], tokens: int) -> None:
        shape = [1, tokens, len(order)]
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
        stored = [numpy_helper.from_array(order, "order")]
        # The shape is an input and no constant, as in a real graph, where a request decides it.
        choice = [helper.make_tensor_value_info("tokens", TensorProto.INT64, [3])]
        graph = helper.make_graph(nodes, "ordering", [ends[0], *choice], ends[1:], stored)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        settings.log_severity_level = 3
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
        self._tokens = np.array([1, tokens, 1])

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return x reordered."""
        return np.asarray(self._session.run(None, {"x": x, "tokens": self._tokens})[0])


def main() -> None:
    """Measure both graphs and store the figures."""
    parser = arguments("ordering", __doc__)
    parser.add_argument("--rounds", type=int, default=200)
    given = parser.parse_args()
    result = Result(given.out, {"dtype": "float32", "rounds": given.rounds}, threads=1)
    gather = [helper.make_node("Gather", ["x", "order"], ["y"], axis=-1)]
    elements = [
        helper.make_node("Expand", ["order", "tokens"], ["orders"]),
        helper.make_node("GatherElements", ["x", "orders"], ["y"], axis=-1),
    ]
    for width in WIDTHS:
        rng = np.random.default_rng(width)
        order = rng.permutation(width).astype(np.int32)
        for tokens in TOKENS:
            x = rng.standard_normal((1, tokens, width), np.float32)
            both = [Ordering(nodes, order, tokens) for nodes in (gather, elements)]
            for ordering in both:
                np.testing.assert_array_equal(ordering(x), x[:, :, order])
            seconds: list[list[float]] = [[], []]
            for _ in range(given.rounds):
                for spent, ordering in zip(seconds, both, strict=True):
                    begin = time.process_time()
                    ordering(x)
                    spent.append(time.process_time() - begin)
            first, second = (float(np.median(spent)) for spent in seconds)
            ratio = float(np.median(np.array(seconds[0]) / seconds[1]))
            row = {"gather": first, "elements": second, "faster": ratio}
            result.add("rows", row, numbers=width, tokens=tokens)


if __name__ == "__main__":
    main()
