"""Tests whether decoding steps are faster if onnxruntime knows all shapes: batch, one token, the cache's capacity.

Two sessions of the fused graph, one with fixed instead of symbolic axes, run alternately step by step on fixed
buffers. CPU time of one thread is measured.

Decided: one session serves prompts and decoding steps, because known shapes hardly change the time of a step, and a
second session would hold the weights twice.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks.common import Result, model_arguments, model_name
from benchmarks.suite.artifacts import make
from curconvert_runtime import Artifact

_LENGTH, _CAPACITY = 128, 512  # tokens in the cache at the start, and its columns


class Steps:
    """Runs single steps of a graph on a cache of zeros, because values do not change the time.

    Args:
        artifact: The model.
        batch: Number of rows.
        static: Whether the session knows all shapes.
    """

    def __init__(self, artifact: Artifact, batch: int, *, static: bool) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        if static:
            sizes = {"batch_size": batch, "sequence_length": 1}
            sizes |= dict.fromkeys(("past_sequence_length", "total_sequence_length"), _CAPACITY)
            for name, size in sizes.items():
                options.add_free_dimension_override_by_name(name, size)
        self._session = ort.InferenceSession(artifact.graphs["fused"], options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        model = artifact.model
        self._mask = np.zeros((batch, _CAPACITY), np.int64)
        self._positions = np.zeros((batch, 1), np.int64)
        arrays = {
            "input_ids": np.full((batch, 1), 5, np.int64), "attention_mask": self._mask,
            "position_ids": self._positions, "logits": np.zeros((batch, 1, model["vocab_size"]), np.float32),
        }  # fmt: skip
        for layer in range(model["num_hidden_layers"]):
            for part in ("key", "value"):
                shape = (batch, model["num_key_value_heads"], _CAPACITY, model["head_dim"])
                arrays[f"past_key_values.{layer}.{part}"] = np.zeros(shape, np.float32)
        self._values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        for name, value in self._values.items():
            if name == "logits":
                self._binding.bind_ortvalue_output(name, value)
                continue
            self._binding.bind_ortvalue_input(name, value)
            if name.startswith("past"):
                self._binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)

    def seconds(self, length: int) -> float:
        """Return the CPU seconds of a step with `length` tokens in the cache."""
        self._mask[:, : length + 1] = 1
        self._positions[:] = length
        begin = time.process_time()
        self._session.run_with_iobinding(self._binding)
        return time.process_time() - begin


def main() -> None:
    """Measure both sessions and store the figures."""
    parser = model_arguments("static_shapes", __doc__)
    parser.add_argument("--scratch", type=Path, required=True, help="folder of the artifact, which is made if missing")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=64)
    given = parser.parse_args()
    setting = {
        "model": model_name(given.model), "dtype": "float32", "graph": "fused", "prompt": _LENGTH,
        "cache": _CAPACITY, "steps": given.steps,
    }  # fmt: skip
    result = Result(given.out, setting, threads=1)
    artifact = Artifact.open(make("dense", given.model, given.scratch))
    for batch in given.batch:
        sessions = [Steps(artifact, batch, static=static) for static in (False, True)]
        found = np.array([[own.seconds(_LENGTH + step) for own in sessions] for step in range(given.steps)])
        low, middle, high = (float(x) for x in np.quantile(found[:, 0] / found[:, 1], [0.25, 0.5, 0.75]))
        symbolic, static = (float(x) for x in np.median(found, axis=0))
        row = {"symbolic": symbolic, "static": static, "faster": {"median": middle, "low": low, "high": high}}
        result.add("rows", row, batch=batch)


if __name__ == "__main__":
    main()
