"""Builds a Hugging Face config from GGUF metadata."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from curconvert.base.errors import InputError, UnsupportedError

# These tensors hold settings: rotary frequency factors.
ROPE_FREQS = "rope_freqs.weight"
ROPE_LONG = "rope_factors_long.weight"
ROPE_SHORT = "rope_factors_short.weight"
GLOBAL_TENSORS = (ROPE_FREQS, ROPE_LONG, ROPE_SHORT)

_MODEL_TYPES: Mapping[str, str] = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
    "granite": "granite",
    "olmo2": "olmo2",
    "smollm3": "smollm3",
}
# Config field to metadata key, without the architecture's prefix.
_REQUIRED = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_OPTIONAL = {
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rope_theta": "rope.freq_base",
    "rope_local_base_freq": "rope.freq_base_swa",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
_TOKENS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}
# 27B Gemmas scale queries by hidden_size/heads, others by head_dim. GGUF does not store it; llama.cpp counts layers.
_GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}


def config_from_metadata(
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    factors: Mapping[str, Sequence[float]],
    source: str,
) -> dict[str, Any]:
    """Return a config in the dialect of transformers 4.

    Args:
        metadata: The file's key-value pairs.
        shapes: Tensor shapes by GGUF name, in torch's order.
        factors: Contents of the `GLOBAL_TENSORS` in the file.
        source: Name of the file in messages.

    Raises:
        InputError: A key is missing.
        UnsupportedError: The architecture, a mixture of experts or a rope scaling is not supported.
    """
    architecture = str(metadata.get("general.architecture"))
    if architecture not in _MODEL_TYPES:
        raise UnsupportedError(
            f"{source}: GGUF architecture {architecture!r} is not supported; supported are {', '.join(_MODEL_TYPES)}"
        )

    def get(key: str) -> Any:
        return _exact(metadata.get(f"{architecture}.{key}"))

    if get("expert_count"):
        raise UnsupportedError(f"{source}: mixtures of experts are not supported ({architecture}.expert_count)")
    if architecture == "olmo2" and get("attention.sliding_window"):
        raise UnsupportedError(
            f"{source}: OLMo 3 (olmo2 with a sliding window) is not read from GGUF; use its safetensors"
        )
    config: dict[str, Any] = {"model_type": _MODEL_TYPES[architecture]}
    for field, key in _REQUIRED.items():
        if get(key) is None:
            raise InputError(f"{source}: metadata {architecture}.{key} is missing")
        config[field] = get(key)
    config |= {field: get(key) for field, key in _OPTIONAL.items() if get(key) is not None}
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    for field in ("num_attention_heads", "num_key_value_heads"):
        if not isinstance(config[field], int) or config[field] < 1:
            raise InputError(f"{source}: metadata says {field} is {config[field]!r:.60}, expected a positive integer")
    config |= {field: metadata.get(key) for field, key in _TOKENS.items()}
    if "token_embd.weight" in shapes:
        config["vocab_size"] = shapes["token_embd.weight"][0]
    config["tie_word_embeddings"] = "output.weight" not in shapes
    if architecture in ("llama", "granite", "smollm3"):
        config["attention_bias"] = "blk.0.attn_output.bias" in shapes
        config["mlp_bias"] = "blk.0.ffn_down.bias" in shapes
    if architecture in ("gemma2", "gemma3", "phi3"):
        # In phi3 files, zero means no window.
        config["sliding_window"] = get("attention.sliding_window") or None
    if architecture in _GEMMA_27B_LAYERS:
        large = config["num_hidden_layers"] == _GEMMA_27B_LAYERS[architecture]
        heads_width = config["hidden_size"] // config["num_attention_heads"]
        config["query_pre_attn_scalar"] = heads_width if large else config.get("head_dim", heads_width)
    config |= _rope(config, architecture, get, factors, source)
    return config


def _rope(
    config: Mapping[str, Any], architecture: str, get: Any, factors: Mapping[str, Sequence[float]], source: str
) -> dict[str, Any]:
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    found: dict[str, Any] = {}
    if architecture == "phi3":
        if get("rope.dimension_count"):
            found["partial_rotary_factor"] = get("rope.dimension_count") / head_dim
        if get("rope.scaling.original_context_length"):
            found["original_max_position_embeddings"] = get("rope.scaling.original_context_length")
        if ROPE_LONG in factors:
            scaling = {"type": "longrope", "short_factor": factors[ROPE_SHORT], "long_factor": factors[ROPE_LONG]}
            found["rope_scaling"] = scaling
        return found
    if any(factor != 1.0 for factor in factors.get(ROPE_FREQS, ())):
        theta = config.get("rope_theta", 10_000.0)
        return {"rope_scaling": _llama3_scaling(factors[ROPE_FREQS], theta, head_dim, source)}
    kind = get("rope.scaling.type")
    if kind in (None, "none"):
        return {}
    if kind not in ("linear", "yarn"):
        raise UnsupportedError(f"{source}: rope scaling {kind!r} is not supported")
    scaling = {"rope_type": kind, "factor": get("rope.scaling.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = get("rope.scaling.original_context_length")
    return {"rope_scaling": scaling}


def _llama3_scaling(factors: Sequence[float], theta: float, head_dim: int, source: str) -> dict[str, Any]:
    """Return Llama 3's rope scaling, recovered from the frequency factors, because GGUF stores nothing more.

    All published models have the same low and high factors and original length. The result is checked against every
    stored factor.
    """
    factor = max(factors)
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((8192 / wavelengths - 1.0) / (4.0 - 1.0), 0.0, 1.0)
    expected = 1.0 / ((1.0 - smooth) / factor + smooth)
    if len(factors) != len(expected) or not np.allclose(factors, expected, rtol=1e-4):
        raise UnsupportedError(f"{source}: tensor {ROPE_FREQS} is not Llama 3's rope scaling")
    return scaling


def _exact(value: Any) -> Any:
    """Return the shortest number with the same float32 value: 9.999999747378752e-06 becomes 1e-05."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
