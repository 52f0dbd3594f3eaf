"""Builds `genai_config.json`, with which onnxruntime-genai loads the artifact's folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curconvert.base.names import CPU
from curconvert.families.family import family_of
from curconvert_runtime.format.files import FUSED_FILE
from curconvert_runtime.serve.providers import provider_named
from curconvert_runtime.serve.sampling import Sampling

# Default max_length of generation. The shared cache is allocated for this number of tokens.
_MAX_LENGTH = 4096
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_KNOWN = ("repetition_penalty", "min_length", "no_repeat_ngram_size")


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
        generation_config: The model's generation_config.json, for the settings that onnxruntime-genai knows.
        target: Execution provider that the graph was made for.
    """
    settings = generation_config or {}
    provider = provider_named(target)
    heads = int(config["num_attention_heads"])
    length = int(config["max_position_embeddings"])
    return {
        "model": {
            "type": family_of(config).genai_type or config["model_type"],
            # It rejects null, and takes a model without these fields.
            **{key: config[key] for key in _TOKENS if config.get(key) is not None},
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
            **_sampling(settings, int(config["vocab_size"])),
            "max_length": min(length, _MAX_LENGTH),
            # Only GroupQueryAttention can write into a cache that is longer than its content.
            "past_present_share_buffer": graph == FUSED_FILE,
        },
    }


def _sampling(settings: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """Return how to choose tokens. onnxruntime-genai has no min_p, and allows no top_k above the vocabulary."""
    sampling = Sampling.of({}, settings)
    known = {name: settings[name] for name in _KNOWN if settings.get(name) is not None}
    if sampling.temperature == 0:
        return {"do_sample": False, **known}
    chosen = {"temperature": sampling.temperature, "top_k": min(sampling.top_k, vocab_size), "top_p": sampling.top_p}
    return {"do_sample": True, **chosen, **known}
