"""`genai_config.json`, which makes onnxruntime-genai load the folder as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def genai_config(
    config: Mapping[str, Any],
    *,
    graph: str = "model.fused.onnx",
    generation_config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of genai_config.json.

    Args:
        config: The Hugging Face config as a plain dict.
        graph: File name of the graph to run.
        generation_config: The model's generation_config.json, whose token ids win over the config's.
    """
    tokens = {**config, **{key: value for key, value in (generation_config or {}).items() if value is not None}}
    heads = int(config["num_attention_heads"])
    layers = int(config["num_hidden_layers"])
    length = int(config["max_position_embeddings"])
    eos = tokens.get("eos_token_id")
    first_eos = eos[0] if isinstance(eos, list) else eos
    pad = tokens.get("pad_token_id")
    return {
        "model": {
            "type": config["model_type"],
            "bos_token_id": _or(tokens.get("bos_token_id"), first_eos),
            "eos_token_id": _or(eos, 0),
            "pad_token_id": _or(pad, _or(first_eos, 0)),
            "context_length": length,
            "vocab_size": int(config["vocab_size"]),
            "decoder": {
                "session_options": {"provider_options": []},
                "filename": graph,
                "head_size": int(config.get("head_dim") or int(config["hidden_size"]) // heads),
                "hidden_size": int(config["hidden_size"]),
                "num_attention_heads": heads,
                "num_key_value_heads": int(config.get("num_key_value_heads") or heads),
                "num_hidden_layers": layers,
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
            "max_length": length,
            "past_present_share_buffer": False,
        },
    }


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
