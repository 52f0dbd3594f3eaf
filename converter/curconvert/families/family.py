"""The supported model families, as data.

Code never asks for a family by name. What sets a family apart beyond its config (projections that its checkpoints
store fused) is a field here; everything else comes from transformers' modules and mobius' graphs.
A family is listed when the parity suite passes for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from curconvert.base.errors import InputError, UnsupportedError


@dataclass(frozen=True)
class Family:
    """What is needed to know about a family besides its config.

    Attributes:
        model_type: The config's `model_type`.
        architecture: transformers' causal language model class.
        fused: Path of a fused projection within a decoder block, to the projections whose rows it stacks.
    """

    model_type: str
    architecture: str
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def part_sizes(self, config: Mapping[str, Any], path: str) -> tuple[int, ...]:
        """Return the number of rows of each part of the fused projection `path`, in storage order."""
        sizes = projection_rows(config)
        return tuple(sizes[part] for part in self.fused[path])


def projection_rows(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the output width of each projection that may be stored fused."""
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    return {
        "q_proj": config["num_attention_heads"] * head_dim,
        "k_proj": kv_heads * head_dim,
        "v_proj": kv_heads * head_dim,
        "gate_proj": config["intermediate_size"],
        "up_proj": config["intermediate_size"],
    }


_FAMILIES = (
    Family("llama", "LlamaForCausalLM"),
    Family("mistral", "MistralForCausalLM"),
    Family("qwen2", "Qwen2ForCausalLM"),
    Family("qwen3", "Qwen3ForCausalLM"),
    Family("smollm3", "SmolLM3ForCausalLM"),
    Family("gemma2", "Gemma2ForCausalLM"),
    Family("gemma3_text", "Gemma3ForCausalLM"),
    Family("granite", "GraniteForCausalLM"),
    Family("olmo2", "Olmo2ForCausalLM"),
    Family("olmo3", "Olmo3ForCausalLM"),
    Family(
        "phi3",
        "Phi3ForCausalLM",
        fused=MappingProxyType(
            {
                "self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"),
                "mlp.gate_up_proj": ("gate_proj", "up_proj"),
            }
        ),
    ),
)

SUPPORTED_FAMILIES: Mapping[str, Family] = MappingProxyType({family.model_type: family for family in _FAMILIES})


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family of a config.

    Raises:
        InputError: The config names no model_type.
        UnsupportedError: The family is not supported; the message lists those that are.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise InputError(f"config: model_type is {model_type!r:.60}, expected one of {', '.join(SUPPORTED_FAMILIES)}")
    if model_type not in SUPPORTED_FAMILIES:
        raise UnsupportedError(
            f"config: model_type {model_type!r:.60} is not supported; supported are {', '.join(SUPPORTED_FAMILIES)}"
        )
    return SUPPORTED_FAMILIES[model_type]
