"""A config for a lone safetensors file: what the shapes tell, and a precise question for what they cannot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curconvert.base.errors import InputError
from curconvert.checkpoint.strict import EMBEDDING, HEAD
from curconvert.checkpoint.types import TensorInfo

_LAYER = "model.layers.0."
_ALWAYS = ("rope_theta", "rms_norm_eps", "max_position_embeddings")
# What a family computes with beyond the common fields, and no shape shows.
_BY_FAMILY: Mapping[str, tuple[str, ...]] = {
    "mistral": ("sliding_window",),
    "phi3": ("sliding_window",),
    "gemma2": ("sliding_window", "query_pre_attn_scalar"),
    "gemma3_text": ("sliding_window", "query_pre_attn_scalar", "rope_local_base_freq"),
    "granite": ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"),
    "smollm3": ("no_rope_layer_interval",),
    "olmo3": ("sliding_window",),
}
_PLAIN = ("llama", "mistral", "granite", "smollm3")


def infer_config(tensors: Mapping[str, TensorInfo], given: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Infer a config from names and shapes.

    Args:
        tensors: What the file holds.
        given: Overrides from the user; they also answer what shapes leave open.
        source: What messages call the file.

    Returns:
        A config in the version 4 dialect, `given` included.

    Raises:
        InputError: Names or shapes are not those of a supported model, or `given` leaves a question open.
    """
    shapes = {name: info.shape for name, info in tensors.items()}
    vocab_size, hidden_size = _matrix(shapes, EMBEDDING, source)
    q_width, kv_width, intermediate_size = _widths(shapes, source)
    config: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": _layer_count(shapes),
        "tie_word_embeddings": HEAD not in shapes,
    }
    questions: list[str] = []
    candidates = (given["model_type"],) if "model_type" in given else _families(shapes)
    if len(candidates) == 1:
        config["model_type"] = candidates[0]
    else:
        questions.append(f"model_type (one of {', '.join(candidates)})")
    if config.get("model_type") not in ("qwen2", "gemma2", "gemma3_text", "olmo2", "olmo3"):
        config["attention_bias"] = _LAYER + "self_attn.o_proj.bias" in shapes
        config["mlp_bias"] = _LAYER + "mlp.down_proj.bias" in shapes
    head_norm = shapes.get(_LAYER + "self_attn.q_norm.weight", ())
    if head_norm and head_norm != (q_width,):  # one norm per head: OLMo 2's spans all heads
        config["head_dim"] = head_norm[0]
    widths = ("head_dim", "num_attention_heads", "num_key_value_heads")
    config |= {key: value for key, value in given.items() if value is not None or key not in widths}
    known = next((key for key in widths[:2] if key in config), None)
    if known:
        _count_heads(config, known, q_width, kv_width, source)
    else:
        questions.append("head_dim or num_attention_heads")
    asked = (*_ALWAYS, *_BY_FAMILY.get(config.get("model_type", ""), ()))
    questions += [key for key in asked if key not in config]
    if questions:
        raise InputError(
            f"{source}: there is no config.json beside it and shapes cannot tell {', '.join(questions)} "
            "(nor rope_scaling, if the model has one); pass --config config.json, or --config-set key=value for each"
        )
    return config


def _families(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Return the families whose blocks look like this one."""
    has = {name.removeprefix(_LAYER) for name in shapes if name.startswith(_LAYER)}
    if "self_attn.qkv_proj.weight" in has:
        return ("phi3",)
    if "pre_feedforward_layernorm.weight" in has:
        return ("gemma3_text",) if "self_attn.q_norm.weight" in has else ("gemma2",)
    if "self_attn.q_norm.weight" in has:
        return ("qwen3",) if "input_layernorm.weight" in has else ("olmo2", "olmo3")
    if "self_attn.q_proj.bias" in has and "self_attn.o_proj.bias" not in has:
        return ("qwen2",)
    return _PLAIN


def _layer_count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    numbers = [name.split(".")[2] for name in shapes if name.startswith("model.layers.")]
    return 1 + max(int(number) for number in numbers if number.isdecimal() and len(number) < 6)


def _widths(shapes: Mapping[str, tuple[int, ...]], source: str) -> tuple[int, int, int]:
    """Return the rows of q_proj, of k_proj and of gate_proj, whether they are stored fused or not."""
    q_width = _matrix(shapes, _LAYER + "self_attn.o_proj.weight", source)[1]
    if _LAYER + "self_attn.qkv_proj.weight" in shapes:
        kv_width = (_matrix(shapes, _LAYER + "self_attn.qkv_proj.weight", source)[0] - q_width) // 2
    else:
        kv_width = _matrix(shapes, _LAYER + "self_attn.k_proj.weight", source)[0]
    return q_width, kv_width, _matrix(shapes, _LAYER + "mlp.down_proj.weight", source)[1]


def _matrix(shapes: Mapping[str, tuple[int, ...]], name: str, source: str) -> tuple[int, int]:
    shape = shapes.get(name)
    if shape is None or len(shape) != 2:
        found = "missing" if shape is None else f"{len(shape)}-dimensional"
        raise InputError(
            f"{source}: there is no config.json beside it and tensor {name}, from which sizes are inferred, is {found}"
        )
    return shape[0], shape[1]


def _count_heads(config: dict[str, Any], known: str, q_width: int, kv_width: int, source: str) -> None:
    """Derive the head counts and their width from the known one."""
    value = config[known]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or q_width % value:
        raise InputError(f"{source}: {known} is {value!r}, expected a divisor of q_proj's {q_width} rows")
    other = "num_attention_heads" if known == "head_dim" else "head_dim"
    config.setdefault(other, q_width // value)
    if kv_width % config["head_dim"]:
        raise InputError(f"{source}: head_dim {config['head_dim']} does not divide k_proj's {kv_width} rows")
    config.setdefault("num_key_value_heads", kv_width // config["head_dim"])
