"""Runs a checkpoint block by block, with the weights of one decoder block in memory at a time."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from transformers import DynamicCache

from curconvert.base.device import products_in
from curconvert.blocks.cache import cache_argument
from curconvert.blocks.head import ChunkedHead
from curconvert.blocks.quantized import Quantized
from curconvert.checkpoint.safetensors_file import prefetch
from curconvert.checkpoint.types import Checkpoint
from curconvert.families.family import family_of
from curconvert.families.skeleton import EMBEDDING, HEAD, build_skeleton, canonical_parameters, set_tensor
from curconvert.families.split import SplitLinear

_CPU = torch.device("cpu")


class _FrontReachedError(Exception):
    """Stops transformers' forward pass when the needed values are computed."""


class _Stub(nn.Module):
    """Replaces a decoder layer and records the arguments that transformers passes to it."""

    def __init__(self) -> None:
        super().__init__()
        self.inject: Tensor | None = None
        self.hidden: Tensor | None = None
        self.kwargs: dict[str, Any] = {}
        self.stop = False

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        self.hidden, self.kwargs = hidden_states, kwargs
        if self.stop:
            raise _FrontReachedError
        return hidden_states if self.inject is None else self.inject


class Recorder(nn.Module):
    """Replaces the lm_head, so that hooks can read its input; returns one number per token instead of logits."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (…, hidden_size) to (…, 1)."""
        return hidden[..., :1]


class Block:
    """One decoder block with its weights in float32.

    Attributes:
        index: Position in the model.
        prefix: Beginning of the canonical names of its tensors.
        device: Device on which it runs.
        linears: The block's linears by canonical weight name.
    """

    def __init__(
        self,
        index: int,
        layer: nn.Module,
        prefix: str,
        kwargs: dict[tuple[int, int], dict[str, Any]],
        device: torch.device = _CPU,
    ) -> None:
        self.index, self.prefix, self.device = index, prefix, device
        self.layer = layer
        self._kwargs = kwargs
        self.linears = dict(_linears(layer, prefix))

    @property
    def on_gpu(self) -> bool:
        """Whether the block runs on a GPU."""
        return self.device.type != "cpu"

    def forward(
        self, hidden: Tensor, cache: DynamicCache | None = None, *, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Run the block on whole sequences without padding.

        Args:
            hidden: (batch, tokens, hidden_size) float32. Call `BlockStream.embed` with this batch and length before.
            cache: Receives this layer's keys (after rotary embedding) and values.
            dtype: Dtype of matrix products; sums, norms and the result stay float32.
        """
        # Keep the cache out of `placed`, which would copy it: transformers may register caches as trees with torch.
        kwargs = {
            **placed(self._kwargs[hidden.shape[0], hidden.shape[1]], self.device),
            cache_argument(self.layer): cache,
        }
        with torch.inference_mode(), products_in(dtype, self.device.type):
            output: Tensor = self.layer(hidden.to(self.device), **kwargs)
        return output.to(hidden.device)

    def input_of(self, name: str, hidden: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Run the block up to one of its linears; return the linear's input, (batch, tokens, in_features).

        Args:
            name: The linear's canonical weight name.
            hidden: As in `forward`.
            dtype: As in `forward`.
        """
        found: list[Tensor] = []

        def reached(_linear: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found.append(inputs[0])
            raise _FrontReachedError

        handle = self.linears[name].register_forward_pre_hook(reached)
        try:
            self.forward(hidden, dtype=dtype)
        except _FrontReachedError:
            pass
        finally:
            handle.remove()
        return found[0]

    def trained(self, hidden: Tensor) -> Tensor:
        """Run the block as `forward` does, but record gradients for parameters with `requires_grad`."""
        output: Tensor = self.layer(hidden, **self._kwargs[hidden.shape[0], hidden.shape[1]])
        return output

    def backward(self, hidden: Tensor, gradient: Tensor) -> Tensor:
        """Run the block forward and backward.

        Args:
            hidden: (batch, tokens, hidden_size) float32, the block's input.
            gradient: Gradient of a scalar with respect to the block's output, of the same shape.

        Returns:
            Gradient of the scalar with respect to the block's input.
        """
        hidden = hidden.detach().requires_grad_()
        with torch.enable_grad():
            output = self.layer(hidden, **self._kwargs[hidden.shape[0], hidden.shape[1]])
            (found,) = torch.autograd.grad(output, hidden, gradient)
        return found

    def advance(self, batches: Iterable[Tensor], *, dtype: torch.dtype = torch.float32) -> None:
        """Run the block on each batch in place, so that no second copy of the hidden states is needed."""
        with torch.inference_mode():
            for batch in batches:
                batch.copy_(self.forward(batch, dtype=dtype))

    def replace(self, name: str, module: nn.Module) -> None:
        """Replace the linear with this canonical weight name by another module."""
        old = self.linears[name]
        for parent in self.layer.modules():
            for attribute, child in parent.named_children():
                if child is old:
                    setattr(parent, attribute, module)
        self.linears[name] = module


class BlockStream:
    """Runs a checkpoint's model without loading it as a whole.

    transformers' own forward runs with recording stubs instead of decoder layers. So masks, rotary embeddings and
    scalings are exactly those of the model's family.

    Attributes:
        num_layers: Number of decoder blocks.
        vocab_size: Rows of the embedding.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        deployed: torch.dtype | None = None,
        device: torch.device = _CPU,
        tables: Mapping[str, Quantized] = MappingProxyType({}),
    ) -> None:
        """Build the model's skeleton without reading a block.

        Args:
            checkpoint: The model.
            deployed: Round every weight to this dtype, as an artifact stores it; None keeps the checkpoint's values.
            device: Device of the blocks. Hidden states, embedding and lm_head stay in main memory.
            tables: Quantized embedding and lm_head, if they are quantized.
        """
        self._checkpoint, self._deployed, self._device = checkpoint, deployed, device
        self._tables = tables
        self._table: tuple[str, Tensor] | None = None
        self._model = build_skeleton(checkpoint.config)
        base = self._model.get_submodule("model")
        embedding = base.get_submodule("embed_tokens")
        assert isinstance(embedding, nn.Embedding)
        embedding.padding_idx = None  # only matters in training, and can be out of range of a compact table
        self._blocks = family_of(checkpoint.config).blocks
        self._layers = list(self._model.get_submodule(self._blocks).children())
        self._stubs = [_Stub() for _ in self._layers]
        parent, _, attribute = self._blocks.rpartition(".")
        setattr(self._model.get_submodule(parent), attribute, nn.ModuleList(self._stubs))
        self.num_layers = len(self._layers)
        self.vocab_size = checkpoint.tensors[EMBEDDING].shape[0]
        self._kwargs: list[dict[tuple[int, int], dict[str, Any]]] = [{} for _ in self._layers]

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return the hidden states that enter the first block.

        Args:
            token_ids: (batch, tokens) int64, no padding.

        Returns:
            (batch, tokens, hidden_size) float32.
        """
        unique, compact = torch.unique(token_ids, return_inverse=True)
        # Convert only the used rows to float32; the embedding itself stays in the file.
        table = self._vocabulary_table(EMBEDDING)
        rows = table[unique] if isinstance(table, Quantized) else self._round(table[unique]).to(torch.float32)
        embedding = self._model.get_submodule("model.embed_tokens")
        set_tensor(embedding, "weight", rows)
        self._stubs[-1].stop = True
        try:
            # inference_mode is wrong here, because `Block.backward` uses the recorded masks and rotary tables.
            with torch.no_grad():
                self._model(input_ids=compact, use_cache=False)
        except _FrontReachedError:
            pass
        finally:
            self._stubs[-1].stop = False
        shape = (token_ids.shape[0], token_ids.shape[1])
        for kwargs, stub in zip(self._kwargs, self._stubs, strict=True):
            kwargs[shape] = stub.kwargs
        hidden = self._stubs[0].hidden
        assert hidden is not None
        return hidden

    def release_table(self) -> None:
        """Release the embedding or lm_head, which otherwise stays in memory until the next block."""
        self._table = None
        _release_freed_memory()

    @contextmanager
    def block(self, index: int) -> Iterator[Block]:
        """Yield one decoder block in float32, and release it at the end of the context."""
        self.release_table()
        layer = self._layers[index]
        owners = list(canonical_parameters(layer, self._prefix(index)))
        for name, owner, attribute in owners:
            # Copy the weight, so that the mapped file is read once and a replaced weight is freed immediately.
            set_tensor(
                owner, attribute, self._round(self._checkpoint.read(name)).to(self._device, torch.float32, copy=True)
            )
        if index + 1 < self.num_layers:  # read the next block from the disk while this one runs
            prefetch(self._checkpoint.tensors[name] for name in self._names(index + 1))
        block = Block(index, layer, self._prefix(index), self._kwargs[index], self._device)
        originals = dict(block.linears)
        try:
            yield block
        finally:
            for name, module in originals.items():
                if block.linears[name] is not module:
                    block.replace(name, module)
            for _, owner, attribute in owners:
                set_tensor(owner, attribute, getattr(owner, attribute).to("meta"))
            _release_freed_memory()

    def _names(self, index: int) -> Iterator[str]:
        return (name for name, _, _ in canonical_parameters(self._layers[index], self._prefix(index)))

    def _prefix(self, index: int) -> str:
        return f"{self._blocks}.{index}."

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply the final norm and the lm_head (with the family's scaling and soft cap).

        Args:
            hidden: (batch, tokens, hidden_size) float32, the last block's output.

        Returns:
            (batch, tokens, vocab_size) float32.
        """
        with torch.no_grad():  # inference_mode is wrong here: `likelihood_gradient` uses the same table
            return self._head(hidden)

    def likelihood_gradient(self, hidden: Tensor, generator: torch.Generator) -> Tensor:
        """Return the gradient of the log-likelihood with respect to `hidden`, for next tokens sampled from the model.

        Its second moment is the Fisher information: the curvature of the KL divergence from this model.

        Args:
            hidden: (batch, tokens, hidden_size) float32, the last block's output.
            generator: Random generator for the tokens.

        Returns:
            Gradient of the same shape as `hidden`.
        """
        hidden = hidden.detach().requires_grad_()
        with torch.enable_grad():
            rows = self._head(hidden).log_softmax(-1).flatten(0, 1)
            drawn = torch.multinomial(rows.detach().exp(), 1, generator=generator)
            (found,) = torch.autograd.grad(rows.gather(1, drawn).sum(), hidden)
        return found

    def record_head(self, hidden: Tensor, recorder: Recorder) -> None:
        """Call a recorder with the lm_head's input.

        Args:
            hidden: (batch, tokens, hidden_size) float32, the last block's output.
            recorder: Module that is called once.
        """
        with torch.no_grad():
            self._after_blocks(hidden, recorder)

    def _head(self, hidden: Tensor) -> Tensor:
        names = self._checkpoint.tensors
        head = HEAD if HEAD in names else EMBEDDING
        bias = self._checkpoint.read("lm_head.bias") if "lm_head.bias" in names else None
        return self._after_blocks(hidden, ChunkedHead(self._vocabulary_table(head), bias, self._deployed))

    def _after_blocks(self, hidden: Tensor, head: nn.Module) -> Tensor:
        norm = self._model.get_submodule("model.norm")
        scale = self._round(self._checkpoint.read("model.norm.weight"))
        set_tensor(norm, "weight", scale.to(torch.float32, copy=True))
        self._model.lm_head = head
        ids = torch.zeros(hidden.shape[:2], dtype=torch.int64)
        self._stubs[-1].inject = hidden
        try:
            set_tensor(self._model.get_submodule("model.embed_tokens"), "weight", torch.zeros(1, hidden.shape[-1]))
            logits: Tensor = self._model(input_ids=ids, use_cache=False).logits
        finally:
            self._stubs[-1].inject = None
        return logits

    def _vocabulary_table(self, name: str) -> Tensor | Quantized:
        """Return embedding or lm_head, kept until the next block because a GGUF file dequantizes it on each read."""
        if name in self._tables:
            return self._tables[name]
        if self._table is None or self._table[0] != name:
            self._table = (name, self._checkpoint.read(name))
        return self._table[1]

    def _round(self, tensor: Tensor) -> Tensor:
        return tensor if self._deployed is None else tensor.to(self._deployed)


def placed(value: Any, device: torch.device) -> Any:
    """Return nested arguments with all tensors moved to a device."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), value)


def _release_freed_memory() -> None:
    """Return freed memory to the system, because glibc otherwise keeps several megabytes per block."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # not in musl
        if trim is not None:
            trim(0)


def _linears(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            yield f"{prefix}{name}.weight", child
        else:
            yield from _linears(child, prefix if isinstance(child, SplitLinear) else f"{prefix}{name}.")
