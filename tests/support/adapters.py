"""Adapters of the tiny models, trained by chance, and what PEFT's own merge makes of them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFWriter
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from support.families import TinyModel, split_names
from support.gguf_files import ARCHITECTURES, ggml_name, interleave

Prepare = Callable[[Any], Any]
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def train_adapter(folder: Path, model: Any, prepare: Prepare = lambda _: None, **settings: Any) -> Any:
    """Save a LoRA adapter of a transformers model whose trained values are all drawn by chance.

    Args:
        folder: Where to; created.
        model: The base, which is not changed.
        prepare: Changes the copy of the base before the adapter is added.
        settings: Fields of PEFT's `LoraConfig`.

    Returns:
        PEFT's model, not merged.
    """
    base = copy.deepcopy(model)
    prepare(base)
    adapted = get_peft_model(base, LoraConfig(**{"r": 4, "lora_alpha": 12, "task_type": "CAUSAL_LM"} | settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                noise = 0.3 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(parameter + noise.abs() if "magnitude" in name else noise)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted.save_pretrained(folder)
    return adapted


def merged_tensors(adapted: Any, config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors of PEFT's merge by canonical name, fused projections as their parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = adapted.merge_and_unload().state_dict()
    found: dict[str, torch.Tensor] = {}
    for name, tensor in whole.items():
        start = 0
        for part, rows in split_names(name, len(tensor), config):
            found[part] = tensor[start : start + rows]
            start += rows
    return found


def write_gguf_adapter(path: Path, adapter: Path, model: TinyModel, alpha: float, **metadata: str) -> None:
    """Write the adapter of a PEFT folder the way llama.cpp's converter lays it out."""
    config = model.oracle.config
    architecture = ARCHITECTURES[config.model_type]
    writer = GGUFWriter(path, architecture)
    for key, value in ({"general.type": "adapter", "adapter.type": "lora"} | metadata).items():
        writer.add_string(key, value)
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, tensor in load_file(adapter / "adapter_model.safetensors").items():
        stem, _, kind = name.removeprefix("base_model.model.").partition(".lora_")
        if not kind:  # the base layer of an embedding
            continue
        values = tensor.numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(stem.split(".")[-1])
        if kind == "B.weight" and heads and architecture == "llama":
            values = interleave(values, heads)
        if kind == "embedding_A":
            values = values.T
        end = "a" if kind in ("A.weight", "embedding_A") else "b"
        stored = f"{ggml_name(f'{stem}.weight', False)}.lora_{end}"
        writer.add_tensor(stored, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
