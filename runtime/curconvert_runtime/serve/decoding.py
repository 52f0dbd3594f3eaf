"""Runs the prompts of one batch, then one token per row and step. The caller chooses the tokens from the logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curconvert_runtime.serve import requests
from curconvert_runtime.serve.requests import Ids, Logits
from curconvert_runtime.serve.runner import KeyValueCache, Runner

# A long single prompt runs in pieces. This limits the memory of attention scores, and of logits if all are computed.
_PIECE_TOKENS = 2048


class Decoder:
    """Feeds tokens to the model and returns logits, for one batch of prompts.

    Args:
        session: The loaded model.
        prompts: Checked token ids of each row.
        new_tokens: Upper bound of tokens per row; the context bounds them too.
    """

    def __init__(self, session: Runner, prompts: Sequence[Ids], new_tokens: int) -> None:
        self._session = session
        self._ids, self._mask = requests.padded(prompts, session.padding)
        self._lengths = [len(prompt) for prompt in prompts]
        batch, width = self._ids.shape
        self._steps: _BoundSteps | None = None
        if session.graph == "fused":
            # The last chosen token never enters the cache, so one column less is enough.
            self._steps = _BoundSteps(session, batch, min(width + new_tokens - 1, session.max_positions))
            self._cache = self._steps.cache
        else:
            self._cache = session.allocate_cache(batch)

    def prefill(self) -> Logits:
        """Run the prompts; return the logits after each row's last token, [rows, vocabulary] in float32."""
        session, (batch, width) = self._session, self._ids.shape
        last = np.full(batch, width - 1) if session.padding == "left" else np.array(self._lengths) - 1
        first = int(last.min())
        # Frequencies that depend on the length need the whole prompt.
        step = width if batch > 1 or session.rope_follows_length else _PIECE_TOKENS
        for start in range(0, width, step):
            part = slice(start, start + step)
            ids, mask = self._ids[:, part], self._mask[:, : part.stop]
            logits, self._cache = session.forward(ids, mask, past=self._cache, first=first - width)
        return np.asarray(logits[np.arange(batch), last - first])

    def step(self, tokens: Ids | Sequence[int]) -> Logits:
        """Feed one token per row; return the logits after it, [rows, vocabulary], valid until the next step."""
        if self._steps is not None:
            logits = self._steps.run(tokens, self._lengths)
        else:
            self._mask = np.pad(self._mask, ((0, 0), (0, 1)), constant_values=1)
            answer, self._cache = self._session.forward(np.array(tokens)[:, None], self._mask, past=self._cache)
            logits = answer[:, 0]
        self._lengths = [length + 1 for length in self._lengths]
        return logits

    def keep(self, slots: Sequence[int]) -> None:
        """Keep only the rows at these ascending indices, so that finished rows are no longer computed."""
        chosen = np.array(slots)
        self._lengths = [self._lengths[slot] for slot in slots]
        if self._steps is not None:
            self._steps.keep(chosen, max(self._lengths))
        else:
            # The padding that only the dropped rows' prompts needed goes too: so a row never exceeds the context.
            first = int(self._mask[chosen].argmax(axis=1).min())
            self._mask = self._mask[chosen, first:]
            arrays = (np.ascontiguousarray(value.numpy()[chosen, :, first:]) for value in self._cache.values)
            values = tuple(map(self._session.place, arrays))
            self._cache = KeyValueCache(values, len(slots), self._cache.length - first)


class _Buffer:
    """Holds an array that the graph reads or writes, and its `OrtValue`. On the CPU both share memory."""

    def __init__(self, session: Runner, array: NDArray[Any]) -> None:
        self.array = array
        self.value = session.place(array)
        self._shared = session.memory == "cpu"

    def push(self) -> None:
        """Copy the array to the device; on the CPU there is nothing to copy."""
        if not self._shared:
            self.value.update_inplace(self.array)

    def pull(self) -> NDArray[Any]:
        """Return the array with the device's contents."""
        if not self._shared:
            self.array = self.value.numpy()
        return self.array


class _BoundSteps:
    """Runs decoding steps of the fused graph on fixed buffers; the graph appends keys and values in place.

    The cache has `capacity` columns, enough for the prompts and all new tokens.
    """

    def __init__(self, session: Runner, batch: int, capacity: int) -> None:
        self._session, self._batch, self._capacity = session, batch, capacity
        self._cache = [_Buffer(session, array) for array in session.cache_arrays(batch, capacity)]
        self._binding: Any = None

    @property
    def cache(self) -> KeyValueCache:
        """Return the cache as an empty one, for the prefill to fill."""
        return KeyValueCache(tuple(buffer.value for buffer in self._cache), self._batch, 0, self._capacity)

    def run(self, tokens: Ids | Sequence[int], lengths: Sequence[int]) -> Logits:
        """Feed one token to each row; `lengths` are the tokens that each row has in the cache."""
        if self._binding is None:
            self._bind(lengths)
        ids, positions, mask = self._inputs
        ids.array[:, 0], positions.array[:, 0] = tokens, lengths
        mask.array[np.arange(self._batch), lengths] = 1
        for buffer in self._inputs:
            buffer.push()
        self._session.run(self._binding, captured_as=self._number)
        return self._logits.pull()[:, 0]

    def _bind(self, lengths: Sequence[int]) -> None:
        session, rows = self._session, self._batch
        # The mask spans the whole cache, because the graph gets a row's length as the sum of its mask.
        mask = (np.arange(self._capacity) < np.array(lengths)[:, None]).astype(np.int64)
        arrays = (np.zeros((rows, 1), np.int64), np.zeros((rows, 1), np.int64), mask)
        self._inputs = [_Buffer(session, array) for array in arrays]
        self._logits = _Buffer(session, np.zeros((rows, 1, session.vocab_size), np.float32))
        self._binding = session.io_binding()
        for name, buffer in zip(("input_ids", "position_ids", "attention_mask"), self._inputs, strict=True):
            if name != "position_ids" or session.has_positions:
                self._binding.bind_ortvalue_input(name, buffer.value)
        session.bind_cache(self._binding, self.cache)
        self._binding.bind_ortvalue_output("logits", self._logits.value)
        # A captured CUDA graph stores the addresses of these buffers, so new buffers need a new capture number.
        self._number = next(session.capture_numbers)

    def keep(self, slots: Ids, used: int) -> None:
        """Move the rows `slots` to the front and drop the others; only the first `used` columns are copied."""
        for buffer in self._cache:
            array = buffer.pull()
            array[: len(slots), :, :used] = array[slots, :, :used]
        self._cache = [_Buffer(self._session, buffer.array[: len(slots)]) for buffer in self._cache]
        self._batch = len(slots)
        self._binding = None
