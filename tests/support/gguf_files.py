"""GGUF files of the tiny models, written the way llama.cpp's converter lays them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quant_shape_to_byte_shape, quantize

from support.families import TinyModel

Array = npt.NDArray[Any]
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "granite": "granite",
    "olmo2": "olmo2",
    "phi3": "phi3",
}
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def ggml_name(name: str, has_post_norms: bool) -> str:
    """Return llama.cpp's name of a Hugging Face tensor."""
    for long, short in _NAMES.items():
        name = name.replace(long, short)
    return name.replace("post_attention_layernorm", "post_attention_norm" if has_post_norms else "ffn_norm")


def interleave(rows: Array, heads: int) -> Array:
    """Reorder q or k rows: within a head of width d, row i of the first half and i of the second become neighbors."""
    width = len(rows) // heads
    order = [
        head * width + half * width // 2 + i for head in range(heads) for i in range(width // 2) for half in (0, 1)
    ]
    return rows[order]


def write_gguf(
    path: Path,
    model: TinyModel,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    finish: Callable[[GGUFWriter], None] = lambda _: None,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Array]:
    """Write a tiny model; matrices whose rows fit the block size get `kind`, the rest stay float32.

    Args:
        path: The file to write.
        model: The model.
        kind: How matrices are stored.
        finish: Adds tensors or metadata before the file is written.
        metadata: Scalar keys to add.

    Returns:
        What each stored tensor holds after dequantization, by Hugging Face name and in its order and offset.
    """
    config = model.oracle.config
    architecture = ARCHITECTURES[config.model_type]
    writer = GGUFWriter(path, architecture)
    _add_config(writer, config, architecture)
    for key, value in (metadata or {}).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](key, value)
    expected: dict[str, Array] = {}
    tensors = {name: tensor.numpy() for name, tensor in model.oracle.state_dict().items()}
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    has_post_norms = any("post_feedforward_layernorm" in name for name in tensors)
    for name, values in tensors.items():
        quantized = (
            values.ndim == 2 and values.shape[1] % GGML_QUANT_SIZES[kind][0] == 0 and kind != GGMLQuantizationType.F32
        )
        stored, kept = _decoded(values, kind) if quantized else (values, values)
        expected[name] = kept
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if architecture in ("llama", "granite", "smollm3") and heads:
            stored = interleave(stored, heads)  # rows move as a whole, quantized or not
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            stored = stored + 1
        raw = kind if quantized else None
        writer.add_tensor(ggml_name(name, has_post_norms), np.ascontiguousarray(stored), raw_dtype=raw)
    finish(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def _decoded(values: Array, kind: GGMLQuantizationType) -> tuple[Array, Array]:
    try:
        stored = quantize(values, kind)
    except NotImplementedError:  # the package only decodes these: any bytes are some tensor
        shape = quant_shape_to_byte_shape(values.shape, kind)
        stored = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    return stored, dequantize(stored, kind)


def _add_config(writer: GGUFWriter, config: Any, architecture: str) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if architecture in ("qwen3", "gemma2", "gemma3"):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if architecture == "phi3":
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    if architecture in ("phi3", "gemma2", "gemma3"):
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if architecture == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
