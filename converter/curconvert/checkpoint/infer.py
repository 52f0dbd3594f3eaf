"""Infers the config of a single safetensors file from shapes, and asks the user for the values that shapes hide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curconvert.base.errors import InputError
from curconvert.base.roles import Role
from curconvert.checkpoint.strict import EMBEDDING, HEAD
from curconvert.checkpoint.types import TensorInfo
from curconvert.families.family import BLOCKS, FUSED_ATTENTION, LINEAR_PATHS, SUPPORTED_FAMILIES, linear_name

_LAYER = f"{BLOCKS}.0."
_ALWAYS = ("rope_theta", "rms_norm_eps", "max_position_embeddings")
_PLAIN = ("llama", "mistral", "granite", "smollm3")


def infer_config(tensors: Mapping[str, TensorInfo], given: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return a config that follows from tensor names and shapes.

    Args:
        tensors: The file's tensors.
        given: Overrides from the user, including values that shapes cannot tell.
        source: Name of the file in messages.

    Returns:
        A config in the version 4 dialect, `given` included.

    Raises:
        InputError: Names or shapes do not fit a supported model, or `given` lacks a value.
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
    family = SUPPORTED_FAMILIES.get(str(config.get("model_type")))
    if family is None or family.states_biases:
        config["attention_bias"] = _first(Role.OUTPUT, "bias") in shapes
        config["mlp_bias"] = _first(Role.DOWN, "bias") in shapes
    head_norm = shapes.get(_LAYER + "self_attn.q_norm.weight", ())
    if head_norm and head_norm != (q_width,):  # a norm per head; OLMo 2 has one norm over all heads
        config["head_dim"] = head_norm[0]
    widths = ("head_dim", "num_attention_heads", "num_key_value_heads")
    config |= {key: value for key, value in given.items() if value is not None or key not in widths}
    known = next((key for key in widths[:2] if key in config), None)
    if known:
        _count_heads(config, known, q_width, kv_width, source)
    else:
        questions.append("head_dim or num_attention_heads")
    asked = (*_ALWAYS, *(family.unseen if family else ()))
    questions += [key for key in asked if key not in config]
    if questions:
        raise InputError(
            f"{source}: there is no config.json beside it and shapes cannot tell {', '.join(questions)} "
            "(nor rope_scaling, if the model has one); pass --config config.json, or --config-set key=value for each"
        )
    return config


def _families(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Return the families whose blocks have these tensors."""
    has = {name.removeprefix(_LAYER) for name in shapes if name.startswith(_LAYER)}
    if f"{FUSED_ATTENTION}.weight" in has:
        return ("phi3",)
    if "pre_feedforward_layernorm.weight" in has:
        return ("gemma3_text",) if "self_attn.q_norm.weight" in has else ("gemma2",)
    if "self_attn.q_norm.weight" in has:
        return ("qwen3",) if "input_layernorm.weight" in has else ("olmo2", "olmo3")
    if _first(Role.QUERY, "bias") in shapes and _first(Role.OUTPUT, "bias") not in shapes:
        return ("qwen2",)
    return _PLAIN


def _layer_count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    numbers = [name.split(".")[2] for name in shapes if name.startswith(f"{BLOCKS}.")]
    return 1 + max(int(number) for number in numbers if number.isdecimal() and len(number) < 6)


def _widths(shapes: Mapping[str, tuple[int, ...]], source: str) -> tuple[int, int, int]:
    """Return the widths of queries, of keys and of the MLP, for fused and for separate linears."""
    q_width = _matrix(shapes, _first(Role.OUTPUT), source)[1]
    fused = f"{_LAYER}{FUSED_ATTENTION}.weight"
    if fused in shapes:
        kv_width = (_matrix(shapes, fused, source)[0] - q_width) // 2
    else:
        kv_width = _matrix(shapes, _first(Role.KEY), source)[0]
    return q_width, kv_width, _matrix(shapes, _first(Role.DOWN), source)[1]


def _first(role: Role, kind: str = "weight") -> str:
    """Return the name of a tensor of the first block."""
    return f"{_LAYER}{LINEAR_PATHS[role]}.{kind}"


def _matrix(shapes: Mapping[str, tuple[int, ...]], name: str, source: str) -> tuple[int, int]:
    shape = shapes.get(name)
    if shape is None or len(shape) != 2:
        found = "missing" if shape is None else f"{len(shape)}-dimensional"
        raise InputError(
            f"{source}: tensor {name}, from which sizes are inferred, is {found}; pass --config config.json"
        )
    return shape[0], shape[1]


def _count_heads(config: dict[str, Any], known: str, q_width: int, kv_width: int, source: str) -> None:
    """Set the numbers of heads and the head size in `config`, derived from the known one of them."""
    value = config[known]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or q_width % value:
        raise InputError(
            f"{source}: {known} is {value!r}, expected a divisor of {linear_name(Role.QUERY)}'s {q_width} rows"
        )
    other = "num_attention_heads" if known == "head_dim" else "head_dim"
    config.setdefault(other, q_width // value)
    if kv_width % config["head_dim"]:
        raise InputError(
            f"{source}: head_dim {config['head_dim']} does not divide {linear_name(Role.KEY)}'s {kv_width} rows"
        )
    config.setdefault("num_key_value_heads", kv_width // config["head_dim"])
