"""The configurations that the parity suite covers: every family, shapes of heads, biases, tying, rope scalings."""

from __future__ import annotations

from typing import Any

from support.families import FAMILIES

_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 2.0}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.5, 2.0, 3.0, 4.0],
    "original_max_position_embeddings": 14,
}


def _rope(theta: float = 100.0, **parameters: Any) -> dict[str, Any]:
    """Return rope parameters with a base so small that all frequencies turn within a short test."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **parameters}}


def _heads(heads: int, kv_heads: int, head_dim: int, **settings: Any) -> dict[str, Any]:
    return {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim, **settings}


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    # Shapes: heads × kv heads × head_dim × bias × tying
    "llama-multi-head": ("llama", _heads(4, 4, 8)),
    "llama-multi-query": ("llama", _heads(4, 1, 8, tie_word_embeddings=True)),
    "llama-three-groups": ("llama", _heads(6, 2, 16, hidden_size=48)),
    "llama-biases": ("llama", _heads(4, 2, 16, attention_bias=True, mlp_bias=True)),
    "llama-one-head-tied": ("llama", _heads(1, 1, 32, tie_word_embeddings=True)),
    "llama-gelu": ("llama", {"hidden_act": "gelu"}),
    "gemma2-silu": ("gemma2", {"hidden_activation": "silu"}),
    "gemma3-exact-gelu": ("gemma3_text", {"hidden_activation": "gelu"}),
    "mistral-wide-heads": ("mistral", _heads(3, 1, 16)),
    "mistral-without-window": ("mistral", {"sliding_window": None}),
    "qwen2-multi-query": ("qwen2", _heads(4, 1, 16, tie_word_embeddings=True)),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3-biases-tied": ("qwen3", _heads(2, 2, 24, attention_bias=True, tie_word_embeddings=True)),
    "qwen3-window": ("qwen3", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "smollm3-biases": ("smollm3", _heads(4, 4, 8, attention_bias=True, mlp_bias=True)),
    "gemma2-uncapped": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma3-multi-query": ("gemma3_text", _heads(4, 1, 16)),
    "granite-tied-biases": ("granite", {"attention_bias": True, "tie_word_embeddings": True}),
    "olmo2-biases": ("olmo2", _heads(4, 4, 8, attention_bias=True)),
    "olmo3-multi-head": ("olmo3", _heads(4, 4, 8, attention_bias=True, tie_word_embeddings=True)),
    "phi3-multi-head": ("phi3", _heads(4, 4, 8, sliding_window=None, tie_word_embeddings=True)),
    # Rope scalings; the short contexts make a length-dependent rope change in mid-sequence
    "llama-rope-default": ("llama", _rope()),
    "llama-rope-linear": ("llama", _rope(rope_type="linear", factor=3.0)),
    "llama-rope-dynamic": ("llama", _rope(rope_type="dynamic", factor=2.0) | {"max_position_embeddings": 14}),
    "llama-rope-yarn": ("llama", _rope(**_YARN)),
    "llama-rope-yarn-attention-factor": ("llama", _rope(**_YARN, attention_factor=0.8)),
    "llama-rope-longrope": ("llama", _rope(**_LONG, factor=4.0)),
    "llama-rope-llama3": ("llama", _rope(**_LLAMA3)),
    "qwen3-rope-yarn": ("qwen3", _rope(**_YARN)),
    "olmo3-yarn-on-full-attention": (
        "olmo3",
        {
            "rope_parameters": {
                "full_attention": {"rope_theta": 100.0, **_YARN},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            }
        },
    ),
    "phi3-partial-rotary": ("phi3", _rope(partial_rotary_factor=0.5)),
    "phi3-longrope": ("phi3", _rope(**_LONG) | {"original_max_position_embeddings": 14}),
    "gemma3-linear-global": (
        "gemma3_text",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
            }
        },
    ),
} | {family: (family, {}) for family in FAMILIES}
