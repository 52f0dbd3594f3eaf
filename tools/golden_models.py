"""Makes the inputs of `golden.py`: tiny random checkpoints, a tokenizer, texts. All are the same on each run."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

_SPECIAL = ("<pad>", "<s>", "</s>")
_MERGES = (
    ("t", "h"), ("th", "e"), ("a", "n"), ("an", "d"), ("Ġ", "the"), ("Ġ", "a"), ("i", "n"), ("o", "r"), ("e", "r"),
)  # fmt: skip
_CHAT = (
    "{% for message in messages %}{{ '<s>' + message['role'] + ': ' + message['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"
)
_WORDS = (
    "the and a river stone bridge carries water over under slowly quickly old new light heavy engineer counts every "
    "number beside matrix column row factor bears weight of in on for without before after morning evening"
)

_BASE: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "rms_norm_eps": 3e-4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "attn_implementation": "eager",
}
_SHORT = {"num_hidden_layers": 2}
_ONE_OF_EACH = {**_SHORT, "sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
# Model type and differences from `_BASE` by folder name, so that the cases use each family's own features.
_CHECKPOINTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "qwen2": ("qwen2", {}),
    "mistral": ("mistral", {**_SHORT, "sliding_window": 6}),
    "qwen3": ("qwen3", {**_SHORT, "head_dim": 32, "attention_bias": True}),
    "smollm3": ("smollm3", {**_SHORT, "no_rope_layers": [1, 0], "attention_bias": True, "mlp_bias": True}),
    "gemma2": (
        "gemma2",
        {
            **_SHORT,
            "sliding_window": 6,
            "query_pre_attn_scalar": 12,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 8.0,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3": ("gemma3_text", {**_ONE_OF_EACH, "query_pre_attn_scalar": 12, "tie_word_embeddings": True}),
    "granite": (
        "granite",
        {
            **_SHORT,
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.7,
            "logits_scaling": 0.5,
        },
    ),
    "olmo2": ("olmo2", _SHORT),
    "olmo3": ("olmo3", _ONE_OF_EACH),
    "phi3": ("phi3", {**_SHORT, "sliding_window": 6, "original_max_position_embeddings": 128}),
}
FAMILIES = tuple(name for name in _CHECKPOINTS if name not in ("llama", "qwen2"))
"""Folders of checkpoints with two layers, one for each other family."""

_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def make_inputs(folder: Path) -> None:
    """Write all checkpoints and texts that the cases name."""
    logging.disable_progress_bar()
    tokenizer = _tokenizer()
    for number, (name, (model_type, settings)) in enumerate(_CHECKPOINTS.items()):
        _checkpoint(folder / name, model_type, {**settings, "vocab_size": len(tokenizer)}, seed=number)
        tokenizer.save_pretrained(folder / name)
    _variants(folder)
    _write_gguf(folder / "qwen2", folder / "qwen2.gguf")
    (folder / "text.txt").write_text(_text(600, seed=0), encoding="utf-8")
    (folder / "other.txt").write_text(_text(200, seed=1), encoding="utf-8")
    numbers = torch.randint(3, len(tokenizer), (24, 32), generator=torch.Generator().manual_seed(0))
    save_file({"input_ids": numbers}, folder / "ids.safetensors")
    lines = _text(40, seed=2).splitlines()
    task = ({"prompt": line[:12], "completion": line[12:36]} for line in lines if line)
    (folder / "task.jsonl").write_text("".join(json.dumps(line) + "\n" for line in task), encoding="utf-8")


def _text(sentences: int, seed: int) -> str:
    """Return random sentences, one per line, with ten per paragraph."""
    draw = random.Random(seed)
    lines = []
    for number in range(sentences):
        words = draw.choices(_WORDS.split(), k=draw.randint(4, 12))
        lines.append(" ".join(words).capitalize() + "." + ("\n" if number % 10 == 9 else ""))
    return "\n".join(lines) + "\n"


def _tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with a few fixed merges."""
    merges = list(_MERGES)
    tokens = [*_SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(left + right for left, right in merges)]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = dict(zip(("pad_token", "bos_token", "eos_token"), _SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=_CHAT, **names)


def _checkpoint(folder: Path, model_type: str, settings: Mapping[str, Any], seed: int) -> None:
    """Write a random model with logits of order 1, without norm weights equal to one or biases equal to zero."""
    config = CONFIG_MAPPING[model_type](**{**_BASE, **settings})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                neutral = 0.0 if name.endswith("bias") else float(parameter.mean())
                parameter.copy_(neutral + 0.3 * noise)
            elif name.endswith(("embed_tokens.weight", "lm_head.weight")):
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(noise / math.sqrt(parameter.shape[1]))
    model.save_pretrained(folder)


def _variants(folder: Path) -> None:
    """Write variants of the tiny Llama: 16 bits, shards, a single file, similar layers, and foreign tensors."""
    source = folder / "llama"
    tensors = load_file(source / "model.safetensors")
    companions = [path for path in source.iterdir() if path.suffix != ".safetensors"]
    for name in ("bfloat16", "shards", "alike", "foreign"):
        (folder / name).mkdir()
        for path in companions:
            (folder / name / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text(encoding="utf-8")) | {"dtype": "bfloat16"}
    (folder / "bfloat16" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({key: value.bfloat16() for key, value in tensors.items()}, folder / "bfloat16" / "model.safetensors")
    save_file(tensors, folder / "lone.safetensors")
    weight_map: dict[str, str] = {}
    for number in (0, 1):
        file = f"model-{number + 1:05}-of-00002.safetensors"
        names = sorted(tensors)[number::2]
        save_file({key: tensors[key] for key in names}, folder / "shards" / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "shards" / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    save_file(_alike(tensors), folder / "alike" / "model.safetensors")
    _adapter(folder / "adapter", tensors)
    _fp8(folder / "bfloat16", folder / "fp8")
    foreign = {f"module.{key}": value for key, value in tensors.items()} | {"mtp.weight": torch.ones(4)}
    save_file(foreign, folder / "foreign" / "model.safetensors")


def _adapter(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a LoRA adapter of every query and down projection, as PEFT stores it."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name in sorted(tensors):
        if name.endswith(("q_proj.weight", "down_proj.weight")):
            rows, columns = tensors[name].shape
            stem = f"base_model.model.{name.removesuffix('weight')}"
            found[f"{stem}lora_A.weight"] = 0.1 * torch.randn((4, columns), generator=generator)
            found[f"{stem}lora_B.weight"] = 0.1 * torch.randn((rows, 4), generator=generator)
    save_file(found, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": "llama"}
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _fp8(source: Path, folder: Path) -> None:
    """Write a copy of a checkpoint with projections in FP8 and a scale for each block of 32 × 32."""
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    stored = {}
    for name, weight in load_file(source / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            stored[name] = weight
            continue
        rows, columns = weight.shape
        blocks = weight.float().view(rows // 32, 32, columns // 32, 32)
        scale = blocks.abs().amax(dim=(1, 3), keepdim=True) / 448
        stored[name] = (blocks / scale).view(rows, columns).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scale.view(rows // 32, columns // 32)
    save_file(stored, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _alike(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors in which all layers have nearly the first layer's keys and values, so that sharing helps."""
    generator = torch.Generator().manual_seed(0)
    changed = dict(tensors)
    for name in sorted(tensors):
        layer, _, kind = name.removeprefix("model.layers.").partition(".")
        if kind.endswith(("k_proj.weight", "v_proj.weight")) and layer != "0":
            first = tensors[f"model.layers.0.{kind}"]
            changed[name] = first + 0.02 * torch.randn(first.shape, generator=generator) * first.std()
    return changed


def _write_gguf(source: Path, path: Path) -> None:
    """Write the tiny Qwen2 in llama.cpp's layout, with matrices in Q8_0 and without a tokenizer."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    writer = GGUFWriter(path, "qwen2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10000.0)
    kind = GGMLQuantizationType.Q8_0
    for name, tensor in load_file(source / "model.safetensors").items():
        short, values = name, np.ascontiguousarray(tensor.numpy())
        for long, abbreviation in _GGUF_NAMES.items():
            short = short.replace(long, abbreviation)
        if values.ndim == 1:
            writer.add_tensor(short, values)
        else:
            writer.add_tensor(short, quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
