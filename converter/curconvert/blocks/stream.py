"""Run a checkpoint block by block: one decoder block's weights in memory at a time."""

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
from curconvert.blocks.head import ChunkedHead
from curconvert.blocks.quantized import Quantized
from curconvert.checkpoint.safetensors_file import prefetch
from curconvert.checkpoint.types import Checkpoint
from curconvert.families.family import family_of
from curconvert.families.skeleton import EMBEDDING, HEAD, build_skeleton, canonical_parameters, set_tensor
from curconvert.families.split import SplitLinear

_CPU = torch.device("cpu")


class _FrontReachedError(Exception):
    """Ends transformers' forward pass once what is wanted of it is computed."""


class _Stub(nn.Module):
    """Takes a decoder layer's place and records what transformers passes to it."""

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
    """Takes the head's place and returns one number of its input for each token: hooks see the whole input."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (…, hidden_size) to (…, 1)."""
        return hidden[..., :1]


class Block:
    """One decoder block with its weights in float32.

    Attributes:
        index: Position in the model.
        prefix: What the canonical names of its tensors begin with.
        device: Where it runs.
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
            hidden: (batch, tokens, hidden_size) float32; this shape must have gone through `BlockStream.embed`.
            cache: Receives this layer's keys (after rotary embedding) and values.
            dtype: Of products; sums, norms and what the block returns stay float32.
        """
        # The cache itself is passed on: where transformers has told torch its parts, it would be taken for a tree.
        kwargs = {**placed(self._kwargs[hidden.shape[0], hidden.shape[1]], self.device), "past_key_values": cache}
        with torch.inference_mode(), products_in(dtype, self.device.type):
            output: Tensor = self.layer(hidden.to(self.device), **kwargs)
        return output.to(hidden.device)

    def input_of(self, name: str, hidden: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
        """Run the block as far as one of its linears, and return what enters that, (batch, tokens, in_features).

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
        """Run the block as `forward` does, with gradients for those of its parameters that want them."""
        output: Tensor = self.layer(hidden, **self._kwargs[hidden.shape[0], hidden.shape[1]])
        return output

    def backward(self, hidden: Tensor, gradient: Tensor) -> Tensor:
        """Run the block forwards and backwards.

        Args:
            hidden: (batch, tokens, hidden_size) float32, the block's input.
            gradient: The same shape: of some scalar with respect to the block's output.

        Returns:
            The scalar's gradient with respect to the block's input.
        """
        hidden = hidden.detach().requires_grad_()
        with torch.enable_grad():
            output = self.layer(hidden, **self._kwargs[hidden.shape[0], hidden.shape[1]])
            (found,) = torch.autograd.grad(output, hidden, gradient)
        return found

    def advance(self, batches: Iterable[Tensor], *, dtype: torch.dtype = torch.float32) -> None:
        """Run the block on each batch and put its output in the input's place: no second copy of the hidden states."""
        with torch.inference_mode():
            for batch in batches:
                batch.copy_(self.forward(batch, dtype=dtype))

    def replace(self, name: str, module: nn.Module) -> None:
        """Put another module in the place of the linear with this canonical weight name."""
        old = self.linears[name]
        for parent in self.layer.modules():
            for attribute, child in parent.named_children():
                if child is old:
                    setattr(parent, attribute, module)
        self.linears[name] = module


class BlockStream:
    """A checkpoint's model, never materialized as a whole.

    transformers' own forward runs with recording stubs in the place of the decoder layers, so that masks, rotary
    embeddings and scalings are exactly the family's, whatever the family.

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
        """Open the stream.

        Args:
            checkpoint: The model.
            deployed: Round every weight to this dtype, as an artifact stores it; None keeps the checkpoint's values.
            device: Where blocks run. Hidden states, the embedding and the head stay in main memory.
            tables: Embedding and head where they are quantized.
        """
        self._checkpoint, self._deployed, self._device = checkpoint, deployed, device
        self._tables = tables
        self._table: tuple[str, Tensor] | None = None
        self._model = build_skeleton(checkpoint.config)
        base = self._model.get_submodule("model")
        embedding = base.get_submodule("embed_tokens")
        assert isinstance(embedding, nn.Embedding)
        embedding.padding_idx = None  # matters in training only, and is out of range of a compact table
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
        # Only the rows in use are widened; the embedding itself stays in the file.
        table = self._vocabulary_table(EMBEDDING)
        rows = table[unique] if isinstance(table, Quantized) else self._round(table[unique]).to(torch.float32)
        embedding = self._model.get_submodule("model.embed_tokens")
        set_tensor(embedding, "weight", rows)
        self._stubs[-1].stop = True
        try:
            # Not inference_mode: what is recorded here (masks, rotary tables) also serves `Block.backward`.
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
        """Give up the embedding or the head, which is kept from its last use until the next block."""
        self._table = None
        _release_freed_memory()

    @contextmanager
    def block(self, index: int) -> Iterator[Block]:
        """Materialize one decoder block in float32 and release it again."""
        self.release_table()
        layer = self._layers[index]
        owners = list(canonical_parameters(layer, self._prefix(index)))
        for name, owner, attribute in owners:
            # A copy, so that the mapped file is touched once and a replaced weight is freed at once.
            set_tensor(
                owner, attribute, self._round(self._checkpoint.read(name)).to(self._device, torch.float32, copy=True)
            )
        if index + 1 < self.num_layers:  # the next block is read while this one is in work
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
        with torch.no_grad():  # not inference_mode: the table that this reads also serves `likelihood_gradient`
            return self._head(hidden)

    def likelihood_gradient(self, hidden: Tensor, generator: torch.Generator) -> Tensor:
        """Return the gradient of the log-likelihood of next tokens that are sampled from the model itself.

        Its second moment is the Fisher information: the curvature of the divergence from this model.

        Args:
            hidden: (batch, tokens, hidden_size) float32, the last block's output.
            generator: Samples the tokens.

        Returns:
            With respect to `hidden`, the same shape.
        """
        hidden = hidden.detach().requires_grad_()
        with torch.enable_grad():
            rows = self._head(hidden).log_softmax(-1).flatten(0, 1)
            drawn = torch.multinomial(rows.detach().exp(), 1, generator=generator)
            (found,) = torch.autograd.grad(rows.gather(1, drawn).sum(), hidden)
        return found

    def record_head(self, hidden: Tensor, recorder: Recorder) -> None:
        """Show a recorder what enters the head.

        Args:
            hidden: (batch, tokens, hidden_size) float32, the last block's output.
            recorder: Called once.
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
        """Read the embedding or the head, kept until the next block: a GGUF file dequantizes it on every read."""
        if name in self._tables:
            return self._tables[name]
        if self._table is None or self._table[0] != name:
            self._table = (name, self._checkpoint.read(name))
        return self._table[1]

    def _round(self, tensor: Tensor) -> Tensor:
        return tensor if self._deployed is None else tensor.to(self._deployed)


def placed(value: Any, device: torch.device) -> Any:
    """Return nested arguments with their tensors on a device."""
    return tree_map_only(Tensor, lambda tensor: tensor.to(device), value)


def _release_freed_memory() -> None:
    """Hand freed memory back to the system: glibc keeps it in pieces that add up, several megabytes a block."""
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
