"""The supported model families, as data.

Code never asks for a family by name. What sets a family apart beyond its config is a field here; everything else comes
from transformers' modules and mobius' graphs.
A family is listed when the parity suite passes for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from curconvert.base.errors import InputError, UnsupportedError
from curconvert.base.roles import Role

BLOCKS = "model.layers"
"""Where the decoder blocks of most families are: a name of two parts, which a layer's number follows."""

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
"""What most families call the linears of a block."""


def linear_name(role: Role) -> str:
    """Return what most families call a linear, without its path: `q_proj`."""
    return LINEAR_PATHS[role].rpartition(".")[2]


FUSED_ATTENTION = "self_attn.qkv_proj"
FUSED_MLP = "mlp.gate_up_proj"


@dataclass(frozen=True)
class Family:
    """What is needed to know about a family besides its config.

    Attributes:
        model_type: The config's `model_type`.
        architecture: transformers' causal language model class.
        kind: A `decoder` predicts the next token from those before it; no other kind is supported.
        blocks: Path of the decoder blocks.
        linears: Path of each linear within a block, by role.
        fused: Path of a fused projection within a block, to the roles of the linears whose rows it stacks.
        built_as: `model_type` of the same topology with split projections, from which mobius builds the graph.
        caps_attention: Whether its attention applies `attn_logit_softcapping`; Gemma 3 keeps the attribute, unused.
        one_rope_base: Whether `rope_theta` in a version 4 config is the base of the windowed layers, too.
        bare_longrope: Whether version 4 takes nothing but both lists of factors in a LongRoPE scaling.
        states_biases: Whether the config says which linears have biases.
        unseen: Config fields that it computes with and no tensor's shape shows, beyond those of every family.
        genai_type: What onnxruntime-genai calls it; None where it knows the `model_type`.
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
        """Return the rows of each part of the fused projection `path`, in storage order, by its name beside it."""
        rows = output_rows(config)
        return {self.linears[role].rpartition(".")[2]: rows[role] for role in self.fused[path]}


def output_rows(config: Mapping[str, Any]) -> dict[Role, int]:
    """Return the output width of each linear that may be stored fused."""
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
    # onnxruntime-genai refuses model types that it does not know, but treats all plain decoders alike.
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
