"""Running a graph as a server would, and transformers beside it: prefill, then decode with a real cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from transformers import DynamicCache

from curconvert.blocks.cache import cache_argument

LENGTHS = (5, 12, 9)
STEPS = 6


def tokens(vocabulary: int, lengths: tuple[int, ...] = LENGTHS, steps: int = STEPS, seed: int = 0) -> list[np.ndarray]:
    """Return one row of random token ids per length, long enough for the decode steps too."""
    generator = np.random.default_rng(seed)
    return [generator.integers(3, vocabulary, length + steps) for length in lengths]


def oracle_logits(model: Any, rows: list[np.ndarray], steps: int = STEPS) -> list[np.ndarray]:
    """Return transformers' logits of every token of every row: a left-padded batch, prefill then single steps."""
    lengths = [len(row) - steps for row in rows]
    width = max(lengths)
    ids = np.stack([np.concatenate([np.zeros(width - n, np.int64), row]) for n, row in zip(lengths, rows, strict=True)])
    mask = np.stack([np.arange(width + steps) >= width - n for n in lengths]).astype(np.int64)
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0)
    cache, pieces = DynamicCache(config=model.config), []
    with torch.no_grad():
        for start, stop in [(0, width), *((width + step, width + step + 1) for step in range(steps))]:
            output = model(
                input_ids=torch.tensor(ids[:, start:stop]),
                attention_mask=torch.tensor(mask[:, :stop]),
                position_ids=torch.tensor(positions[:, start:stop]),
                **{cache_argument(model): cache},
                use_cache=True,
            )
            pieces.append(output.logits.float().numpy())
    logits = np.concatenate(pieces, axis=1)
    return [logits[index, width - n :] for index, n in enumerate(lengths)]


class Runner:
    """A graph in onnxruntime on the CPU, with its cache."""

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.past: dict[str, np.ndarray] = {}

    def reset(self, batch: int) -> None:
        """Empty the cache."""
        for name, value in self.inputs.items():
            if name.startswith("past_key_values"):
                dtype = np.float16 if value.type == "tensor(float16)" else np.float32
                self.past[name] = np.zeros((batch, value.shape[1], 0, value.shape[3]), dtype)

    def step(self, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Run once and keep the cache; returns the logits."""
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        names = [value.name for value in self.session.get_outputs()]
        outputs = dict(
            zip(
                names,
                self.session.run(names, {k: v.astype(np.int64) for k, v in feeds.items()} | self.past),
                strict=True,
            )
        )
        self.past = {name: outputs[name.replace("past_key_values", "present")] for name in self.past}
        return outputs["logits"]


def left_padded_logits(path: Path, rows: list[np.ndarray], steps: int = STEPS) -> list[np.ndarray]:
    """Return a graph's logits of every token of every row: padding at the left, one mask for all."""
    lengths = np.array([len(row) - steps for row in rows])
    width = int(lengths.max())
    padding = width - lengths
    ids = np.stack([np.concatenate([np.zeros(pad, np.int64), row]) for pad, row in zip(padding, rows, strict=True)])
    mask = (np.arange(width + steps) >= padding[:, None]).astype(np.int64)
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0)
    runner = Runner(path)
    runner.reset(len(rows))
    pieces = [runner.step(ids[:, :width], mask[:, :width], positions[:, :width])]
    pieces += [
        runner.step(ids[:, stop - 1 : stop], mask[:, :stop], positions[:, stop - 1 : stop])
        for stop in range(width + 1, width + steps + 1)
    ]
    logits = np.concatenate(pieces, axis=1)
    assert np.isfinite(logits).all()
    return [logits[index, pad:] for index, pad in enumerate(padding)]


def right_padded_logits(path: Path, rows: list[np.ndarray], steps: int = STEPS) -> list[np.ndarray]:
    """Return a graph's logits of every token of every row: padding at the right, each row's length in its mask."""
    lengths = np.array([len(row) - steps for row in rows])
    width = int(lengths.max())
    ids = np.stack([np.pad(row[:n], (0, width - n)) for n, row in zip(lengths, rows, strict=True)])
    slots = np.arange(width + steps)
    runner = Runner(path)
    runner.reset(len(rows))
    positions = np.broadcast_to(slots[:width], ids.shape)
    prefill = runner.step(ids, slots[:width] < lengths[:, None], positions)
    assert np.isfinite(prefill).all()
    results = [[prefill[index, :n]] for index, n in enumerate(lengths)]
    for step in range(steps):
        ids = np.stack([row[n + step : n + step + 1] for n, row in zip(lengths, rows, strict=True)])
        mask = slots[: width + step + 1] < (lengths + step + 1)[:, None]
        logits = runner.step(ids, mask, (lengths + step)[:, None])
        for index, result in enumerate(results):
            result.append(logits[index])
    return [np.concatenate(result) for result in results]


def largest_difference(left: list[np.ndarray], right: list[np.ndarray]) -> float:
    """Return the largest absolute difference over all rows."""
    return max(float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True))
