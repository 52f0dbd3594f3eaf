"""Builds `genai_config.json`, with which onnxruntime-genai loads the artifact's folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curconvert.base.names import CPU
from curconvert.families.family import family_of
from curconvert_runtime.format.files import FUSED_FILE
from curconvert_runtime.serve.providers import provider_named

# Default max_length of generation. The shared cache is allocated for this number of tokens.
_MAX_LENGTH = 4096


def genai_config(
    config: Mapping[str, Any],
    *,
    graph: str = FUSED_FILE,
    generation_config: Mapping[str, Any] | None = None,
    target: str = CPU,
) -> dict[str, Any]:
    """Return the content of genai_config.json.

    Args:
        config: The Hugging Face config as a plain dict.
        graph: File name of the graph to run.
        generation_config: The model's generation_config.json; its token ids override the config's.
        target: Execution provider that the graph was made for.
    """
    tokens = {**config, **{key: value for key, value in (generation_config or {}).items() if value is not None}}
    provider = provider_named(target)
    heads = int(config["num_attention_heads"])
    length = int(config["max_position_embeddings"])
    eos = tokens.get("eos_token_id")
    first_eos = eos[0] if isinstance(eos, list) else eos
    return {
        "model": {
            "type": family_of(config).genai_type or config["model_type"],
            "bos_token_id": _or(tokens.get("bos_token_id"), first_eos),
            "eos_token_id": _or(eos, 0),
            "pad_token_id": _or(tokens.get("pad_token_id"), _or(first_eos, 0)),
            "context_length": length,
            "vocab_size": int(config["vocab_size"]),
            "decoder": {
                "session_options": {"provider_options": [{name: dict(own)} for name, own in provider.genai.items()]},
                "filename": graph,
                "head_size": int(config.get("head_dim") or int(config["hidden_size"]) // heads),
                "hidden_size": int(config["hidden_size"]),
                "num_attention_heads": heads,
                "num_key_value_heads": int(config.get("num_key_value_heads") or heads),
                "num_hidden_layers": int(config["num_hidden_layers"]),
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": min(length, _MAX_LENGTH),
            # Only GroupQueryAttention can write into a cache that is longer than its content.
            "past_present_share_buffer": graph == FUSED_FILE,
        },
    }


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
