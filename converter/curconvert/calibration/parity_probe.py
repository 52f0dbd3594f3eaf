"""Computes the compressed model's outputs on the parity sequences, block by block during the conversion."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from curconvert.blocks.stream import Block, BlockStream
from curconvert.calibration.probes import sample_vocabulary
from curconvert.journal.store import State
from curconvert_runtime.format.probes import CompressedProbe


class ParityProbe:
    """Runs the parity sequences through the compressed model, one at a time, so that none needs padding.

    Args:
        stream: Stream of the compressed model.
        ids: Token ids, right-padded, (rows, longest).
        lengths: Tokens of each row.
    """

    def __init__(self, stream: BlockStream, ids: NDArray[np.int32], lengths: NDArray[np.int32]) -> None:
        self.ids, self.lengths = ids, lengths
        rows = [
            torch.from_numpy(row[:length].astype(np.int64))[None]
            for row, length in zip(self.ids, self.lengths, strict=True)
        ]
        self.hidden = [stream.embed(row) for row in rows]
        self.keys: dict[int, list[Tensor]] = {}

    def advance(self, block: Block, num_layers: int) -> None:
        """Run one block, and record its keys if it is the first or the last."""
        if block.index not in (0, num_layers - 1):
            self.hidden = [block.forward(row) for row in self.hidden]
            return
        caches = [DynamicCache() for _ in self.hidden]
        self.hidden = [block.forward(row, cache) for row, cache in zip(self.hidden, caches, strict=True)]
        self.keys[block.index] = [cache.layers[block.index].keys[0] for cache in caches]

    def state(self) -> dict[str, list[Tensor]]:
        """Return the hidden states and keys for the journal, by name."""
        return {"probe": self.hidden} | {f"keys.{index}": keys for index, keys in self.keys.items()}

    def restore(self, state: State) -> None:
        """Restore what `state` returned."""
        self.hidden = state.restored("probe")
        names = [name for name in state.tensors if name.startswith("keys.")]
        self.keys = {int(name.removeprefix("keys.")): state.restored(name) for name in names}

    def result(self, stream: BlockStream) -> CompressedProbe:
        """Return the tensors that the artifact stores, after the last block."""
        logits = [stream.logits(row)[0] for row in self.hidden]
        return collected(self.ids, self.lengths, logits, self.keys[min(self.keys)], self.keys[max(self.keys)])


def collected(
    ids: NDArray[np.int32], lengths: NDArray[np.int32], logits: list[Tensor], first: list[Tensor], last: list[Tensor]
) -> CompressedProbe:
    """Return the tensors that an artifact stores for its parity sequences.

    Args:
        ids: Token ids, right-padded, (rows, longest).
        lengths: Tokens of each row.
        logits: For each row, (tokens, vocabulary).
        first: Keys of the first layer after rotary embedding, for each row (heads, tokens, head_dim).
        last: Keys of the last layer, the same.
    """
    vocabulary, width = sample_vocabulary(logits[0].shape[-1]), ids.shape[1]
    return CompressedProbe(
        ids=ids,
        lengths=lengths,
        vocabulary=vocabulary,
        logits=_padded([row[:, vocabulary] for row in logits], width, axis=0),
        first_key=_padded(first, width, axis=1),
        last_key=_padded(last, width, axis=1),
    )


def _padded(rows: list[Tensor], width: int, axis: int) -> NDArray[np.float32]:
    arrays = []
    for row in rows:
        pad = [(0, 0)] * row.ndim
        pad[axis] = (0, width - row.shape[axis])
        arrays.append(np.pad(row.to("cpu", torch.float32).numpy(), pad))
    return np.stack(arrays)
