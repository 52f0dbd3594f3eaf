"""Ways to change a checkpoint folder: config fields, tensors, shards, raw headers."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def edit_config(folder: Path, **values: Any) -> None:
    """Change fields of config.json; `...` removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= values
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Rewrite model.safetensors after a change to its tensors."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def make_layers_alike(folder: Path) -> None:
    """Give all layers nearly the first one's keys and values, so that a common basis is sure to pay."""

    def copy(tensors: dict[str, torch.Tensor]) -> None:
        generator = torch.Generator().manual_seed(0)
        for name in sorted(tensors):
            layer, _, kind = name.removeprefix("model.layers.").partition(".")
            if kind.endswith(("k_proj.weight", "v_proj.weight", "qkv_proj.weight")) and layer != "0":
                first = tensors[f"model.layers.0.{kind}"]
                noise = 0.02 * torch.randn(first.shape, generator=generator) * first.std()
                tensors[name] = (first + noise).to(first.dtype)

    edit_tensors(folder, copy)


def shard(folder: Path, shards: int = 2) -> dict[str, str]:
    """Split model.safetensors into shards with an index; returns the weight map."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name] for name in names[number::shards]}, folder / file)
        weight_map |= dict.fromkeys(names[number::shards], file)
    path.unlink()
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: Any) -> None:
    """Write an index file."""
    content = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def write_raw(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> None:
    """Write a safetensors file with any header; text and bytes are taken as they are, the rest becomes JSON."""
    text = header if isinstance(header, str | bytes) else json.dumps(header)
    encoded = text.encode() if isinstance(text, str) else text
    path.write_bytes(struct.pack("<Q", len(encoded) if length is None else length) + encoded + data)
