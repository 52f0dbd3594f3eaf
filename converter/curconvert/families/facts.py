"""Reads the facts that a graph needs beyond its topology from transformers' own modules.

The modules of the skeleton (transformers' model on the meta device) have the attention scale, soft cap and rotary
frequencies. Graphs are later compared with these modules. So deriving the facts from the config again would only add
a source of errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from curconvert.families.family import SUPPORTED_FAMILIES, Family

FloatArray = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Rope:
    """Rotary frequencies of one kind of layer.

    Attributes:
        inv_freq: float32, (rotary_dim / 2,).
        attention_scaling: Factor on cos and sin.
        original_length: Number of positions for which `inv_freq` is valid; beyond it `long_inv_freq` or `ntk_factor`
            apply.
        long_inv_freq: LongRoPE's frequencies for longer contexts.
        ntk_factor: The factor of dynamic NTK scaling, whose frequencies depend on the current length.
    """

    inv_freq: FloatArray
    attention_scaling: float
    original_length: int
    long_inv_freq: FloatArray | None = None
    ntk_factor: float | None = None


@dataclass(frozen=True)
class AttentionFacts:
    """Facts of one layer's attention.

    Attributes:
        heads: Number of query heads.
        kv_heads: Number of key and value heads.
        head_dim: Size of a head.
        scale: Factor on query · key.
        softcap: Logits become softcap·tanh(logits / softcap); None for none.
        window: A query sees itself and the window − 1 keys before it; None for all.
        rope: Key into `ModelFacts.ropes`; None for a layer without positions.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    softcap: float | None
    window: int | None
    rope: str | None


@dataclass(frozen=True)
class ModelFacts:
    """Facts of the whole model.

    Attributes:
        layers: Attention facts by layer number.
        ropes: Rotary frequencies by layer type, or under "" if all layers share them.
        embedding_scale: Factor on the embedding's output, if the family's embedding module has one.
    """

    layers: tuple[AttentionFacts, ...]
    ropes: Mapping[str, Rope]
    embedding_scale: float | None


def read_facts(skeleton: Any) -> ModelFacts:
    """Return attention, rotary and embedding facts, read from transformers' modules.

    Args:
        skeleton: The model as `build_skeleton` returns it: parameters on the meta device, buffers real.
    """
    config, decoder = skeleton.config, skeleton.model
    family = SUPPORTED_FAMILIES[config.model_type]
    ropes = _ropes(decoder.rotary_emb, config)
    blocks = skeleton.get_submodule(family.blocks)
    layers = tuple(_attention(block.self_attn, index, config, family, ropes) for index, block in enumerate(blocks))
    scale = getattr(decoder.embed_tokens, "scalar_embed_scale", None)
    return ModelFacts(layers, ropes, None if scale is None else float(scale))


def _attention(module: Any, index: int, config: Any, family: Family, ropes: Mapping[str, Rope]) -> AttentionFacts:
    layer_types = getattr(config, "layer_types", None)
    layer_type = layer_types[index] if layer_types else None
    has_rope = bool(getattr(module, "use_rope", True))
    softcap = getattr(module, "attn_logit_softcapping", None) if family.caps_attention else None
    return AttentionFacts(
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=module.head_dim,
        scale=float(module.scaling),
        softcap=softcap,
        window=_window(config, layer_type),
        rope=(layer_type if layer_type in ropes else "") if has_rope else None,
    )


def _window(config: Any, layer_type: str | None) -> int | None:
    # Without layer types, a window applies to every layer (Mistral, Phi-3). A config of a family without windows may
    # still have the key. transformers ignores it then, so the graph must too.
    sliding = layer_type == "sliding_attention" if layer_type else hasattr(type(config), "sliding_window")
    return int(config.sliding_window) if sliding and config.sliding_window is not None else None


def _ropes(rotary: Any, config: Any) -> dict[str, Rope]:
    """Return the ropes of a rotary module: one under "", or one per layer type (Gemma 3)."""
    if isinstance(rotary.rope_type, str):
        return {"": _rope(rotary, "", rotary.rope_type, config.rope_parameters, config)}
    return {
        layer_type: _rope(rotary, f"{layer_type}_", rope_type, config.rope_parameters[layer_type], config)
        for layer_type, rope_type in rotary.rope_type.items()
    }


def _rope(rotary: Any, prefix: str, rope_type: str, parameters: Mapping[str, Any], config: Any) -> Rope:
    inv_freq = getattr(rotary, f"{prefix}inv_freq")
    scaling = float(getattr(rotary, f"{prefix}attention_scaling"))
    length = int(config.max_position_embeddings)
    if rope_type == "dynamic":
        return Rope(_array(inv_freq), scaling, length, ntk_factor=float(parameters["factor"]))
    if rope_type == "longrope":
        # transformers switches to the long factors for positions beyond the original length.
        length = int(parameters["original_max_position_embeddings"])
        layer_type = prefix.removesuffix("_") or None
        long_inv_freq, _ = ROPE_INIT_FUNCTIONS[rope_type](
            config, torch.device("cpu"), seq_len=length + 1, layer_type=layer_type
        )
        return Rope(_array(inv_freq), scaling, length, long_inv_freq=_array(long_inv_freq))
    return Rope(_array(inv_freq), scaling, length)


def _array(tensor: torch.Tensor) -> FloatArray:
    return np.asarray(tensor.detach().float().numpy(), dtype=np.float32)
