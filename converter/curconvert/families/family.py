"""Lists the supported model families as data.

No code compares family names. If a family differs in something that its config does not say, a field here says it.
All other facts come from transformers' modules and mobius' graphs. A family is listed if the parity tests pass for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from curconvert.base.errors import InputError, UnsupportedError
from curconvert.base.roles import Role

BLOCKS = "model.layers"
"""Path of the decoder blocks in most families; a layer's number follows it."""

LINEAR_PATHS: Mapping[Role, str] = MappingProxyType(
    {
        Role.QUERY: "self_attn.q_proj",
        Role.KEY: "self_attn.k_proj",
        Role.VALUE: "self_attn.v_proj",
        Role.OUTPUT: "self_attn.o_proj",
        Role.GATE: "mlp.gate_proj",
        Role.UP: "mlp.up_proj",
        Role.DOWN: "mlp.down_proj",
    }
)
"""Paths of a block's linears in most families."""


def linear_name(role: Role) -> str:
    """Return the name of a linear in most families, without its path: `q_proj`."""
    return LINEAR_PATHS[role].rpartition(".")[2]


FUSED_ATTENTION = "self_attn.qkv_proj"
FUSED_MLP = "mlp.gate_up_proj"


@dataclass(frozen=True)
class Family:
    """What the code must know about a family besides its config.

    Attributes:
        model_type: The config's `model_type`.
        architecture: transformers' causal language model class.
        kind: A `decoder` predicts the next token from those before it; no other kind is supported.
        blocks: Path of the decoder blocks.
        linears: Path of each linear within a block, by role.
        fused: Roles of the linears that a fused projection stacks, by its path within a block.
        built_as: `model_type` of the same topology with split projections, from which mobius builds the graph.
        caps_attention: Whether its attention applies `attn_logit_softcapping`; Gemma 3 has the attribute but ignores
            it.
        one_rope_base: Whether `rope_theta` of a version 4 config is also the base of windowed layers.
        bare_longrope: Whether version 4 accepts only the two lists of factors in a LongRoPE scaling.
        states_biases: Whether the config says which linears have biases.
        unseen: Config fields that the family needs and that no tensor shape shows, beyond those of every family.
        genai_type: onnxruntime-genai's name for it; None if that is the `model_type`.
    """

    model_type: str
    architecture: str
    kind: Literal["decoder"] = "decoder"
    blocks: str = BLOCKS
    linears: Mapping[Role, str] = field(default_factory=lambda: LINEAR_PATHS)
    fused: Mapping[str, tuple[Role, ...]] = field(default_factory=dict)
    built_as: str | None = None
    caps_attention: bool = False
    one_rope_base: bool = False
    bare_longrope: bool = False
    states_biases: bool = True
    unseen: tuple[str, ...] = ()
    genai_type: str | None = None

    def weight_of(self, layer: int, role: Role) -> str:
        """Return the canonical weight name of a linear."""
        return f"{self.blocks}.{layer}.{self.linears[role]}.weight"

    def parts(self, config: Mapping[str, Any], path: str) -> dict[str, int]:
        """Return the number of rows of each part of the fused projection `path`, by part name, in storage order."""
        rows = output_rows(config)
        return {self.linears[role].rpartition(".")[2]: rows[role] for role in self.fused[path]}


def output_rows(config: Mapping[str, Any]) -> dict[Role, int]:
    """Return the output width of each linear that can be part of a fused projection."""
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    return {
        Role.QUERY: config["num_attention_heads"] * head_dim,
        Role.KEY: kv_heads * head_dim,
        Role.VALUE: kv_heads * head_dim,
        Role.GATE: config["intermediate_size"],
        Role.UP: config["intermediate_size"],
    }


_FAMILIES = (
    Family("llama", "LlamaForCausalLM"),
    Family("mistral", "MistralForCausalLM", unseen=("sliding_window",)),
    Family("qwen2", "Qwen2ForCausalLM", states_biases=False),
    Family("qwen3", "Qwen3ForCausalLM"),
    Family("smollm3", "SmolLM3ForCausalLM", unseen=("no_rope_layer_interval",)),
    Family(
        "gemma2",
        "Gemma2ForCausalLM",
        caps_attention=True,
        states_biases=False,
        unseen=("sliding_window", "query_pre_attn_scalar"),
    ),
    Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        states_biases=False,
        unseen=("sliding_window", "query_pre_attn_scalar", "rope_local_base_freq"),
    ),
    Family(
        "granite",
        "GraniteForCausalLM",
        unseen=("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"),
    ),
    # onnxruntime-genai rejects unknown model types, but treats all plain decoders alike. So use a known type.
    Family("olmo2", "Olmo2ForCausalLM", states_biases=False, genai_type="olmo"),
    Family(
        "olmo3",
        "Olmo3ForCausalLM",
        one_rope_base=True,
        states_biases=False,
        unseen=("sliding_window",),
        genai_type="olmo",
    ),
    Family(
        "phi3",
        "Phi3ForCausalLM",
        fused=MappingProxyType({FUSED_ATTENTION: (Role.QUERY, Role.KEY, Role.VALUE), FUSED_MLP: (Role.GATE, Role.UP)}),
        built_as="llama",
        bare_longrope=True,
        unseen=("sliding_window",),
    ),
)

SUPPORTED_FAMILIES: Mapping[str, Family] = MappingProxyType({family.model_type: family for family in _FAMILIES})


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family of a config.

    Raises:
        InputError: The config names no model_type.
        UnsupportedError: The family is not supported; the message lists the supported ones.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise InputError(f"config: model_type is {model_type!r:.60}, expected one of {', '.join(SUPPORTED_FAMILIES)}")
    if model_type not in SUPPORTED_FAMILIES:
        inner = config.get("text_config")
        part = f" (its language model is {inner.get('model_type')!r:.60})" if isinstance(inner, dict) else ""
        raise UnsupportedError(
            f"config: model_type {model_type!r:.60}{part} is not supported; supported are "
            f"{', '.join(SUPPORTED_FAMILIES)}"
        )
    return SUPPORTED_FAMILIES[model_type]
