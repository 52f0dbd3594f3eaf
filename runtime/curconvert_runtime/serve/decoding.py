"""One batch on its way: prompts in, then a token for each row and step; the caller chooses the tokens.

With the fused graph a step binds nothing, allocates nothing and copies no key or value: tokens, positions, mask, logits
and cache are buffers that are made once, and keys and values are appended in place. The mask always spans the whole
cache: the graph counts a row's length by its ones.

A prompt's logits are wanted at its last token only, and the product with the vocabulary is a good part of a small
model. A graph that can computes the logits of the last column alone. Where right-padded prompts end in different
columns, all of them but their last tokens go into the cache first, and these are then the first step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.files import CONFIG
from curconvert_runtime.serve import requests
from curconvert_runtime.serve.cache import KeyValueCache
from curconvert_runtime.serve.requests import Ids, Logits
from curconvert_runtime.serve.runner import Runner

# Below this many tokens reading the weights a second time, for the last token, costs more than the logits do.
_SPLIT_TOKENS = 64
# A long lone prompt runs in pieces, so that attention scores, and logits where all are computed, stay small.
_PIECE_TOKENS = 2048


class _Buffer:
    """An array that the graph reads or writes, and its `OrtValue`: on the CPU the same memory."""

    def __init__(self, session: Runner, array: NDArray[Any]) -> None:
        self.array = array
        self.value = session.place(array)
        self._shared = session.provider == "cpu"

    def push(self) -> None:
        """Bring what was written into the array to the device."""
        if not self._shared:
            self.value.update_inplace(self.array)

    def pull(self) -> NDArray[Any]:
        """Return what the device holds."""
        if not self._shared:
            self.array = self.value.numpy()
        return self.array


class Decoder:
    """Decodes one batch.

    Args:
        session: The model.
        prompts: Checked token ids of each row.
        new_tokens: Most tokens that will be chosen for a row; with the prompts they fit the context.
    """

    def __init__(self, session: Runner, prompts: Sequence[Ids], new_tokens: int) -> None:
        self._session = session
        self._ids, self._mask = requests.padded(prompts, session.padding)
        self._lengths = [len(prompt) for prompt in prompts]
        batch, width = self._ids.shape
        # The last token that is chosen never enters the cache.
        self._capacity = width + new_tokens - 1
        self._static: _StaticSteps | None = None
        if session.graph == "fused":
            self._static = _StaticSteps(session, batch, self._capacity)
            self._cache = self._static.cache
        else:
            self._cache = session.allocate_cache(batch)

    def prefill(self) -> Logits:
        """Run the prompts; return the logits after each row's last token, [rows, vocabulary] in float32."""
        session, ids, mask = self._session, self._ids, self._mask
        batch, width = ids.shape
        shortest = min(self._lengths)
        if session.padding == "left" or shortest == width:
            return self._last_column(ids, mask)
        rows, last = np.arange(batch), np.array(self._lengths) - 1
        cut = session.trims_logits and shortest > 1 and not _rope_follows_length(session.artifact)
        if not cut or sum(self._lengths) < _SPLIT_TOKENS:
            logits, self._cache = session.forward(ids, mask, past=self._cache)
            return np.asarray(logits[rows, last])
        mask[rows, last] = 0
        self._last_column(ids[:, :-1], mask[:, :-1])
        self._lengths = last.tolist()
        return self.step(ids[rows, last])

    def _last_column(self, ids: Ids, mask: Ids) -> Logits:
        """Put tokens into the empty cache; return the last column's logits, [rows, vocabulary]."""
        session, (batch, width) = self._session, ids.shape
        step = width if batch > 1 or _rope_follows_length(session.artifact) else _PIECE_TOKENS
        for start in range(0, width, step):
            part = slice(start, start + step)
            logits, self._cache = session.forward(ids[:, part], mask[:, : part.stop], past=self._cache, last_only=True)
        return np.asarray(logits[:, 0])

    def step(self, tokens: Ids | Sequence[int]) -> Logits:
        """Feed one token per row; return the logits after it, [rows, vocabulary], valid until the next step.

        Args:
            tokens: Token ids, one for each row.
        """
        if self._static is not None:
            logits = self._static.run(tokens, self._lengths)
        else:
            self._mask = np.pad(self._mask, ((0, 0), (0, 1)), constant_values=1)
            answer, self._cache = self._session.forward(np.array(tokens)[:, None], self._mask, past=self._cache)
            logits = answer[:, 0]
        self._lengths = [length + 1 for length in self._lengths]
        return logits

    def keep(self, slots: Sequence[int]) -> None:
        """Drop all rows but these, in this order: what has ended is not computed any more.

        Args:
            slots: Numbers of rows as they are now, ascending.
        """
        self._lengths = [self._lengths[slot] for slot in slots]
        if self._static is not None:
            self._static.keep(slots, max(self._lengths))
        else:
            chosen = np.array(slots)
            self._mask = self._mask[chosen]
            values = tuple(
                self._session.place(np.ascontiguousarray(value.numpy()[chosen])) for value in self._cache.values
            )
            self._cache = KeyValueCache(values, len(slots), self._cache.length)


class _StaticSteps:
    """Steps of the fused graph over buffers that stay where they are.

    Args:
        session: The model.
        batch: Number of rows.
        capacity: Columns of the cache, at least as many as will be used.
    """

    def __init__(self, session: Runner, batch: int, capacity: int) -> None:
        self._session = session
        self._cache = [_Buffer(session, array) for array in session.cache_arrays(batch, capacity)]
        self._capacity = capacity
        self._binding: Any = None
        self.batch = batch

    @property
    def cache(self) -> KeyValueCache:
        """The empty cache, for the prompts."""
        return KeyValueCache(tuple(buffer.value for buffer in self._cache), self.batch, 0, self._capacity)

    def run(self, tokens: Ids | Sequence[int], lengths: Sequence[int]) -> Logits:
        """Feed one token per row.

        Args:
            tokens: Token ids, one for each row.
            lengths: Tokens of each row that are in the cache.
        """
        if self._binding is None:
            self._bind(lengths)
        # Number by number: the graph has just driven all else out of the processor's caches, NumPy's ways of writing a
        # few numbers at once as well.
        new, positions, mask = self._numbers
        for row, (token, length) in enumerate(zip(tokens, lengths, strict=True)):
            new[row], positions[row], mask[row * self._capacity + length] = token, length, 1
        for buffer in self._inputs:
            buffer.push()
        self._session.run(self._binding, captured_as=self._number)
        return self._logits.pull()[:, 0]

    def _bind(self, lengths: Sequence[int]) -> None:
        session, rows = self._session, self.batch
        mask = (np.arange(self._capacity) < np.array(lengths)[:, None]).astype(np.int64)
        inputs = {
            "input_ids": np.zeros((rows, 1), np.int64),
            "position_ids": np.zeros((rows, 1), np.int64),
            "attention_mask": mask,
        }
        self._numbers = [array.reshape(-1).data for array in inputs.values()]
        self._inputs = [_Buffer(session, array) for array in inputs.values()]
        self._logits = _Buffer(session, np.zeros((rows, 1, session.vocab_size), np.float32))
        self._binding = session.io_binding()
        for name, buffer in zip(inputs, self._inputs, strict=True):
            if name != "position_ids" or session.has_positions:
                self._binding.bind_ortvalue_input(name, buffer.value)
        session.bind_cache(self._binding, self.cache)
        self._binding.bind_ortvalue_output("logits", self._logits.value)
        # A captured CUDA graph knows these buffers' addresses: it is of no use for others.
        self._number = session.next_capture()

    def keep(self, slots: Sequence[int], used: int) -> None:
        """Move some rows to the front and drop the others; `used` columns hold something."""
        self._cache = [_Buffer(self._session, _front(buffer.pull(), slots, used)) for buffer in self._cache]
        self.batch = len(slots)
        self._binding = None


def _front(array: NDArray[Any], slots: Sequence[int], used: int) -> NDArray[Any]:
    """Return the chosen rows as a view of the array's beginning, where they are moved to."""
    for target, source in enumerate(slots):
        if target != source:
            array[target, :, :used] = array[source, :, :used]
    return array[: len(slots)]


def _rope_follows_length(artifact: Artifact) -> bool:
    """Tell whether the rotary frequencies change with the sequence's length: then a prompt must not be cut."""
    config = artifact.config if artifact.has(CONFIG) else {}
    parts = [part for part in (config.get("rope_scaling"), config.get("rope_parameters")) if isinstance(part, Mapping)]
    kinds = {str(part.get(key)) for part in parts for key in ("rope_type", "type")}
    return bool(kinds & {"dynamic", "longrope", "su"})
