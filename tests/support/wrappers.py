"""Tiny random multimodal models of transformers, whose language model is of a supported family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

from curconvert.families.wrappers import WRAPPERS
from support.families import VOCABULARY, randomize

WRAPPER_TYPES = tuple(WRAPPERS)
_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
# Settings that the language models need on top; image axes divide the four rotary pairs of a head.
_AXES = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
_OF_TEXT: dict[str, dict[str, Any]] = {
    "gemma3_text": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "mistral": {"sliding_window": 6},
    "qwen2_vl_text": _AXES,
    "qwen2_5_vl_text": _AXES,
    "qwen3_vl_text": _AXES,
}
_SMALL = {
    **dict.fromkeys(("hidden_size", "embed_dim", "intermediate_size", "d_model", "encoder_ffn_dim"), 16),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "encoder_layers", "depth"), 1),
    **dict.fromkeys(("num_attention_heads", "num_heads", "encoder_attention_heads"), 2),
    **dict.fromkeys(("base_channels", "num_embeddings", "latent_channels", "projection_dim"), 32),
    "image_size": 28,
    "patch_size": 14,
    "out_hidden_size": 32,
}
_PLACEHOLDERS = tuple(f"{kind}_token_{suffix}" for kind in ("image", "video", "audio") for suffix in ("id", "index"))


def tiny_wrapper(model_type: str, **text: Any) -> Any:
    """Return a random multimodal model in evaluation mode, with one small layer in each tower.

    Args:
        model_type: One of `WRAPPER_TYPES`.
        text: Fields of the text config that replace the tiny defaults.
    """
    config_class: Any = CONFIG_MAPPING[model_type]
    text_type = config_class().get_text_config().model_type
    config = config_class(text_config={**_TEXT, **_OF_TEXT.get(text_type, {}), "model_type": text_type, **text})
    config.tie_word_embeddings = config.text_config.tie_word_embeddings
    for name in config.sub_configs:
        tower = getattr(config, name)
        for key, value in _SMALL.items() if name != "text_config" else ():
            if type(getattr(tower, key, None)) is int:
                setattr(tower, key, value)
    for name in _PLACEHOLDERS:
        if hasattr(config, name):
            setattr(config, name, VOCABULARY - 1)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = getattr(transformers, _class_of(model_type))(config).eval()
    randomize(model, 0)
    return model


def _class_of(model_type: str) -> str:
    """Return the name of transformers' class that generates text from all inputs of a model type."""
    tables = (table for name, table in vars(modeling_auto).items() if name.endswith("_MAPPING_NAMES"))
    names = (table.get(model_type) for table in tables)
    return next(name for name in names if isinstance(name, str) and name.endswith("ForConditionalGeneration"))


def save_wrapper(model: Any, folder: Path) -> Path:
    """Write a multimodal model as transformers does, and return the folder."""
    model.save_pretrained(folder)
    return folder


def text_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Return the logits of a model on text alone, float32."""
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=ids).logits)
