"""Runs a loaded graph: token ids in, logits out. The key/value cache stays on the device.

The portable graph pads on the left. The fused graph pads on the right: it gets a row's length as the sum of its mask,
and writes new keys at that length. So a batch needs no shifting while it decodes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curconvert_runtime.errors import BackendError, InputError
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.contract import FIRST_LOGITS, cache_names, check_contract
from curconvert_runtime.format.files import CONFIG
from curconvert_runtime.serve import requests
from curconvert_runtime.serve.backend import create_session, import_onnxruntime, one_line
from curconvert_runtime.serve.providers import ProviderOptions, provider_named, provider_options
from curconvert_runtime.serve.requests import Ids, Logits, TokenRows
from curconvert_runtime.serve.text import Tokenizer


@dataclass(frozen=True)
class KeyValueCache:
    """Keys and values of the tokens so far, on the device of the session.

    Attributes:
        values: `OrtValue`s: key of layer 0, value of layer 0, key of layer 1, …
        batch: Number of rows.
        length: Tokens per row in the cache, padding included.
        capacity: Tokens per row that the buffers can hold (fused graph only); None if the cache grows at each step.
    """

    values: tuple[Any, ...]
    batch: int
    length: int
    capacity: int | None = None


class Runner:
    """Computes logits for token ids with one graph of an artifact. Use it from one thread at a time.

    Its methods raise `InputError` for a wrong request and `BackendError` if onnxruntime fails.

    Attributes:
        artifact: The artifact that holds the graph.
        graph: `portable` or `fused`.
        provider: One of `PROVIDERS`.
        memory: onnxruntime's name of the provider's memory.
        options: Settings of the provider.
        padding: Side on which unequal sequences are padded: `left` or `right`.
        has_positions: Whether the graph takes `position_ids`.
        trims_logits: Whether the graph can leave out the logits of the first new tokens.
        io_binding: Makes an empty `IOBinding`.
        capture_numbers: Yields an unused number for each CUDA graph that this session captures.
    """

    def __init__(
        self, artifact: Artifact, graph: str, provider: str, threads: int | None = None,
        options: ProviderOptions | None = None,
    ) -> None:  # fmt: skip
        self.artifact = artifact
        self.graph = graph
        self.provider = provider
        self.memory = provider_named(provider).memory
        self.options = provider_options(provider, options)
        self.padding: str = artifact.manifest["graphs"][graph]["padding"]
        model = artifact.model
        self.vocab_size: int = model["vocab_size"]
        self.max_positions: int = model["max_position_embeddings"]
        self._heads: int = model["num_key_value_heads"]
        self._head_dim: int = model["head_dim"]
        path = artifact.graphs[graph]
        self._ort = import_onnxruntime(provider)
        self._session = create_session(path, provider, threads, self.options)
        self.has_positions = check_contract(self._session, path, model, artifact.arithmetic(graph))
        self.trims_logits = any(entry.name == FIRST_LOGITS for entry in self._session.get_overridable_initializers())
        self.io_binding: Callable[[], Any] = self._session.io_binding
        self._past, self._present = cache_names(model["num_hidden_layers"])
        self.capture_numbers = itertools.count(1)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.artifact.path)!r}, graph={self.graph!r}, provider={self.provider!r})"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the artifact, read at first use."""
        return Tokenizer(self.artifact)

    @cached_property
    def rope_follows_length(self) -> bool:
        """Whether the rotary frequencies of a batch depend on the length of its longest sequence."""
        config = self.artifact.config if self.artifact.has(CONFIG) else {}
        parts = [part for key in ("rope_scaling", "rope_parameters") if isinstance(part := config.get(key), Mapping)]
        kinds = {str(part.get(key)) for part in parts for key in ("rope_type", "type")}
        return bool(kinds & {"dynamic", "longrope", "su"})

    def allocate_cache(self, batch: int, capacity: int | None = None) -> KeyValueCache:
        """Return an empty cache.

        Args:
            batch: Number of rows.
            capacity: Maximum tokens per row. The fused graph then writes new keys and values in place. With None, and
                with the portable graph, each step returns longer tensors.
        """
        if batch < 1:
            raise InputError("empty batch: give at least one sequence of token ids")
        if capacity is not None and not 1 <= capacity <= self.max_positions:
            raise InputError(f"cache for {capacity} tokens: the model's context is {self.max_positions}")
        if self.graph == "portable":
            capacity = None
        values = tuple(map(self.place, self.cache_arrays(batch, capacity or 0)))
        return KeyValueCache(values, batch, 0, capacity)

    def cache_arrays(self, batch: int, columns: int) -> list[NDArray[np.floating]]:
        """Return the zeroed arrays of a cache, in graph order; each [batch, key heads, columns, head size]."""
        shape = (len(self._past), batch, self._heads, columns, self._head_dim)
        return list(np.zeros(shape, self.artifact.arithmetic(self.graph)))

    def place(self, array: NDArray[Any]) -> Any:
        """Return an `OrtValue` with the array on the session's device; on the CPU it shares the array's memory."""
        return self._ort.OrtValue.ortvalue_from_numpy(array, self.memory, self.options.device_id)

    def forward(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        position_ids: Any = None,
        past: KeyValueCache | None = None,
        first: int = 0,
    ) -> tuple[Logits, KeyValueCache]:
        """Run the graph once.

        Args:
            input_ids: New token ids, integers [batch, new].
            attention_mask: Zeros and ones [batch, past + new]; None means all ones.
            position_ids: Integers [batch, new]; None counts the tokens of each row by the mask.
            past: Cache that an earlier call returned. Do not reuse a cache with a capacity: it is updated in place.
            first: Index of the first new token to return logits for, as in a slice. Earlier logits may be skipped.

        Returns:
            Logits, float32 [batch, new tokens after `first`, vocabulary], and the cache with the new tokens.
        """
        inputs, past, total = self._checked(input_ids, attention_mask, position_ids, past)
        binding = self.io_binding()
        for name, array in inputs.items():
            binding.bind_cpu_input(name, array)
        trims = first != 0 and self.trims_logits
        if trims:  # onnxruntime accepts an input with a default only as an OrtValue
            binding.bind_ortvalue_input(FIRST_LOGITS, self._ort.OrtValue.ortvalue_from_numpy(np.array([first])))
        self.bind_cache(binding, past)
        binding.bind_output("logits", "cpu")
        self.run(binding)
        outputs = binding.get_outputs()
        logits = outputs[-1].numpy()
        cache = past.values if past.capacity is not None else tuple(outputs[:-1])
        return logits if trims else logits[:, first:], KeyValueCache(cache, past.batch, total, past.capacity)

    def _checked(
        self, input_ids: Any, attention_mask: Any, position_ids: Any, past: KeyValueCache | None
    ) -> tuple[dict[str, Ids], KeyValueCache, int]:
        """Return the graph's inputs by name, the past, and the cache's length after the call; or raise `InputError`."""
        ids = requests.integers(input_ids, "input_ids")
        if ids.ndim != 2 or 0 in ids.shape:
            raise InputError(f"input_ids {list(ids.shape)}: expected [batch, tokens] with at least one of each")
        requests.check_ids(ids, self.vocab_size)
        batch, new = ids.shape
        past = past or self.allocate_cache(batch)
        if past.batch != batch:
            raise InputError(f"past of {past.batch} rows: input_ids has {batch}")
        total = past.length + new
        if total > self.max_positions:
            raise InputError(f"{total} tokens: the model's context is {self.max_positions}")
        if past.capacity is not None and total > past.capacity:
            raise InputError(f"{total} tokens: the cache was allocated for {past.capacity}")
        mask = np.ones((batch, total), np.int64)
        if attention_mask is not None:
            mask = requests.integers(attention_mask, "attention mask")
        requests.check_mask(mask, (batch, total), self.padding)
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self.has_positions:
            positions = requests.default_positions(mask, new, self.padding)
            if position_ids is not None:
                positions = requests.integers(position_ids, "position_ids")
                if positions.shape != ids.shape or positions.min() < 0 or positions.max() >= self.max_positions:
                    raise InputError(f"position_ids: expected {list(ids.shape)} integers below {self.max_positions}")
            inputs["position_ids"] = positions
        return inputs, past, total

    def bind_cache(self, binding: Any, past: KeyValueCache) -> None:
        """Bind a cache as input and as output. Bind other outputs after it: `forward` reads outputs in this order."""
        for name, value in zip(self._past, past.values, strict=True):
            binding.bind_ortvalue_input(name, value)
        for name, value in zip(self._present, past.values, strict=True):
            if past.capacity is None:
                binding.bind_output(name, self.memory, self.options.device_id)
            else:  # GroupQueryAttention appends in place when past and present are one buffer
                binding.bind_ortvalue_output(name, value)

    def run(self, binding: Any, captured_as: int | None = None) -> None:
        """Run the graph on the bound inputs and outputs.

        With CUDA graphs, `captured_as` is the number under which to capture or replay; None runs without capture.
        """
        settings = None
        if self.options.captures:
            settings = self._ort.RunOptions()
            settings.add_run_config_entry("gpu_graph_id", str(-1 if captured_as is None else captured_as))
        try:
            self._session.run_with_iobinding(binding, settings)
        except Exception as error:  # noqa: BLE001 - onnxruntime's exception classes share no public base
            raise BackendError(f"{self.artifact.graphs[self.graph]}: onnxruntime failed ({one_line(error)})") from None

    def logits(self, ids: TokenRows) -> Logits | list[Logits]:
        """Return the next-token logits at every position.

        Args:
            ids: Token ids without padding: one sequence, a rectangular batch, or sequences of unequal lengths.

        Returns:
            float32: [tokens, vocabulary] for one sequence, [batch, tokens, vocabulary] for a rectangular batch, and a
            list of [tokens, vocabulary] for unequal sequences.
        """
        rows = requests.token_rows(ids, self.vocab_size, self.max_positions)
        if self.rope_follows_length and len({len(row) for row in rows}) > 1:
            return [self.forward(row[None])[0][0] for row in rows]
        batch, mask = requests.padded(rows, self.padding)
        logits, _ = self.forward(batch, mask)
        if requests.is_flat(ids):
            first: Logits = logits[0]
            return first
        if mask.all():
            return logits
        return [row[keep.astype(bool)] for row, keep in zip(logits, mask, strict=True)]
