"""Tiny random checkpoints of every supported family, and compressed copies of them with a torch oracle.

Weights are drawn so that mistakes show: logits of order 1 to 10, peaked attention, no norm weight equal to one and no
bias equal to zero.
"""

from __future__ import annotations

import copy
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from curconvert.checkpoint.types import ByteRange, TensorInfo

VOCABULARY = 97

_BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 3e-4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "attn_implementation": "eager",
}

# What each family needs on top, so that its own features are at work in every test.
_FAMILY: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "smollm3": {"no_rope_layers": [1, 0]},
    "gemma2": {
        "sliding_window": 6,
        "query_pre_attn_scalar": 12,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 8.0,
        "tie_word_embeddings": True,
    },
    "gemma3_text": {
        "sliding_window": 6,
        "query_pre_attn_scalar": 12,
        "layer_types": ["sliding_attention", "full_attention"],
        "tie_word_embeddings": True,
    },
    "granite": {
        "attention_multiplier": 0.2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.7,
        "logits_scaling": 0.5,
    },
    "olmo2": {},
    "olmo3": {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {"sliding_window": 6, "original_max_position_embeddings": 16},
}

FAMILIES: tuple[str, ...] = tuple(_FAMILY)

_FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}


@dataclass(frozen=True)
class TinyModel:
    """A checkpoint folder and the transformers model with the same weights.

    Attributes:
        folder: Holds config.json and model.safetensors.
        config: config.json as a dict.
        tensors: The stored tensors by canonical name; Phi-3's fused projections appear as their row slices.
        forms: Weight name to its form, for compressed matrices.
        oracle: The model in float32, eager attention, evaluation mode.
    """

    folder: Path
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    oracle: Any
    forms: Mapping[str, str] = field(default_factory=dict)


def tiny_config(model_type: str, **settings: Any) -> Any:
    """Return a transformers config of a family with two small layers."""
    values = {**_BASE, **_FAMILY[model_type], **settings}
    return CONFIG_MAPPING[model_type](**values)


def make_checkpoint(
    folder: Path, model_type: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **settings: Any
) -> TinyModel:
    """Write a random checkpoint of a family with `save_pretrained`.

    Args:
        folder: Where to; created.
        model_type: One of `FAMILIES`.
        seed: Seed of the weights.
        dtype: Stored dtype.
        settings: Config values that replace the tiny defaults.
    """
    config = tiny_config(model_type, **settings)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    randomize(model, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
    # A copy: its buffers are rounded too, and rotary frequencies are not stored.
    copy.deepcopy(model).to(dtype).save_pretrained(folder)
    return open_tiny(folder, model)


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Draw every parameter anew: unit-variance outputs, norms around their neutral value, biases away from zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                neutral = 0.0 if name.endswith("bias") else parameter.detach().mean()
                parameter.copy_(neutral + 0.3 * noise)
            elif name.endswith("embed_tokens.weight") or name == "lm_head.weight":
                parameter.copy_(noise * 0.7)
            else:
                gain = 1.5 if any(part in name for part in ("q_proj", "k_proj", "qkv_proj")) else 1.0
                parameter.copy_(noise * gain / math.sqrt(parameter.shape[1]))


def open_tiny(folder: Path, oracle: Any, forms: Mapping[str, str] | None = None) -> TinyModel:
    """Describe a folder that holds config.json and model.safetensors."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return TinyModel(folder, config, tensor_table(folder / "model.safetensors", config), oracle, forms or {})


def tensor_table(file: Path, config: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """Read a safetensors header into canonical names and byte ranges."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    table: dict[str, TensorInfo] = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        row_bytes = (end - start) // entry["shape"][0]
        offset = 8 + length + start
        for part, rows in split_names(name, entry["shape"][0], config):
            location = ByteRange(file, offset, rows * row_bytes)
            table[part] = TensorInfo(part, entry["dtype"], (rows, *entry["shape"][1:]), location)
            offset += rows * row_bytes
    return table


def split_names(name: str, rows: int, config: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Return the canonical names of a stored tensor with their row counts, in storage order."""
    for fused, parts in _FUSED.items():
        if fused in name:
            head_dim = config["hidden_size"] // config["num_attention_heads"]
            kv_rows = config["num_key_value_heads"] * head_dim
            sizes = [rows - 2 * kv_rows, kv_rows, kv_rows] if "qkv" in fused else [rows // 2, rows // 2]
            return [(name.replace(fused, part), size) for part, size in zip(parts, sizes, strict=True)]
    return [(name, rows)]


def compress(
    model: TinyModel,
    folder: Path,
    targets: Sequence[str] = ("q_proj", "k_proj", "gate_proj"),
    rank: int = 5,
    forms: Sequence[str] = ("cur",),
) -> TinyModel:
    """Write a copy whose target matrices are stored as factors of random rows and columns.

    The oracle's weights become the product of the factors, so that both compute the same function.

    Args:
        model: The dense model; its oracle is changed.
        folder: Where the copy goes; created.
        targets: Projection names, compressed in every block.
        rank: Number of rows and columns.
        forms: How matrices are stored, taken in turn.
    """
    dense = _canonical_tensors(model)
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, torch.Tensor] = {}
    products: dict[str, torch.Tensor] = {}
    found: dict[str, str] = {}
    for name, weight in sorted(dense.items()):
        if name.split(".")[-2] not in targets or not name.endswith(".weight"):
            tensors[name] = weight
            continue
        found[name] = forms[len(found) % len(forms)]
        parts, product = _FACTORIZE[found[name]](weight, rank, generator)
        tensors |= {f"{name.removesuffix('weight')}{suffix}": part for suffix, part in parts.items()}
        products[name] = product.float()
    return _write_compressed(model, folder, tensors, products, found)


def drop_neurons(model: TinyModel, folder: Path, count: int = 20) -> TinyModel:
    """Write a copy whose MLPs keep some random neurons, other ones in each layer, with a changed down_proj.

    The oracle keeps all neurons and gets a down_proj that multiplies the dropped ones by zero.

    Args:
        model: A model with dense MLPs; its oracle is changed.
        folder: Where the copy goes; created.
        count: Neurons to keep.
    """
    tensors, products, forms = _canonical_tensors(model), {}, dict(model.forms)
    generator = torch.Generator().manual_seed(2)
    for layer in range(model.config["num_hidden_layers"]):
        stem = f"model.layers.{layer}.mlp"
        down = tensors[f"{stem}.down_proj.weight"]
        kept = torch.randperm(down.shape[1], generator=generator)[:count].sort().values
        for name in (f"{stem}.gate_proj", f"{stem}.up_proj"):
            tensors |= {key: tensors[key][kept] for key in (f"{name}.weight", f"{name}.bias") if key in tensors}
            tensors[f"{name}.rows"], forms[f"{name}.weight"] = kept.int(), "modular_rows"
        whole = torch.zeros_like(down)
        whole[:, kept] = down[:, kept] * math.sqrt(down.shape[1] / count)
        tensors |= {f"{stem}.down_proj.weight": whole[:, kept], f"{stem}.down_proj.cols": kept.int()}
        products[f"{stem}.down_proj.weight"] = whole.float()
        forms[f"{stem}.down_proj.weight"] = "modular_columns"
    return _write_compressed(model, folder, tensors, products, forms)


def _canonical_tensors(model: TinyModel) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name, stored in load_file(model.folder / "model.safetensors").items():
        names, sizes = zip(*split_names(name, stored.shape[0], model.config), strict=True)
        tensors.update(zip(names, stored.split(sizes), strict=True))
    return tensors


def _write_compressed(
    model: TinyModel,
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    products: Mapping[str, torch.Tensor],
    forms: Mapping[str, str],
) -> TinyModel:
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_bytes((model.folder / "config.json").read_bytes())
    replace_weights(model, products)
    return open_tiny(folder, model.oracle, forms)


# Stored tensors in the weight's dtype, and their product in float64, spelled out for each form.
_Factors = tuple[dict[str, torch.Tensor], torch.Tensor]


def _cur(weight: torch.Tensor, rank: int, generator: torch.Generator) -> _Factors:
    matrix = weight.double()
    rows = torch.randperm(matrix.shape[0], generator=generator)[:rank]
    columns = torch.randperm(matrix.shape[1], generator=generator)[:rank]
    c, r = weight[:, columns], weight[rows]
    u = (torch.linalg.pinv(c.double()) @ matrix @ torch.linalg.pinv(r.double())).to(weight.dtype)
    stored = {"C": c, "U": u, "R": r, "rows": rows.int(), "cols": columns.int()}
    return stored, c.double() @ u.double() @ r.double()


def _interpolative(weight: torch.Tensor, rank: int, generator: torch.Generator) -> _Factors:
    """Write the product row by row: rows[k] is R[k], the others, in a random order, are rows of T·R."""
    matrix = weight.double()
    shuffled = torch.randperm(matrix.shape[0], generator=generator)
    rows, others = shuffled[:rank], shuffled[rank:]
    r = weight[rows]
    t = (matrix[others] @ torch.linalg.pinv(r.double())).to(weight.dtype)
    product, order = torch.empty_like(matrix), torch.empty(len(shuffled), dtype=torch.int32)
    for place, row in enumerate(shuffled.tolist()):
        order[row] = place
        product[row] = r[place].double() if place < rank else t[place - rank].double() @ r.double()
    return {"R": r, "T": t, "rows": rows.int(), "order": order}, product


def _two_factor(weight: torch.Tensor, rank: int, generator: torch.Generator) -> _Factors:
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    a, b = (u[:, :rank] * s[:rank]).to(weight.dtype), v[:rank].to(weight.dtype)
    return {"A": a, "B": b}, a.double() @ b.double()


def _sparse_rows(weight: torch.Tensor, rank: int, generator: torch.Generator) -> _Factors:
    rows = torch.randperm(weight.shape[0], generator=generator)[:rank].sort().values
    product, order = torch.zeros_like(weight.double()), torch.full((len(weight),), rank, dtype=torch.int32)
    for place, row in enumerate(rows.tolist()):
        order[row] = place
        product[row] = weight[row]
    return {"weight": weight[rows], "rows": rows.int(), "order": order}, product


def _sparse_columns(weight: torch.Tensor, rank: int, generator: torch.Generator) -> _Factors:
    columns = torch.randperm(weight.shape[1], generator=generator)[:rank].sort().values
    product = torch.zeros_like(weight.double())
    for column in columns.tolist():
        product[:, column] = weight[:, column]
    return {"weight": weight[:, columns], "order": columns.int()}, product


_FACTORIZE = {
    "cur": _cur,
    "interpolative": _interpolative,
    "two_factor": _two_factor,
    "sparse_rows": _sparse_rows,
    "sparse_columns": _sparse_columns,
}
MIXED = ("interpolative", "two_factor", "cur")
"""With three targets in two blocks, each form appears twice."""
SPARSE = ("sparse_rows", "sparse_columns")
"""With seven targets in two blocks, each has both forms."""


def replace_weights(model: TinyModel, products: Mapping[str, torch.Tensor]) -> None:
    """Put matrices into the oracle by canonical name."""
    with torch.no_grad():
        for stored, parameter in model.oracle.named_parameters():
            names, sizes = zip(*split_names(stored, parameter.shape[0], model.config), strict=True)
            for name, part in zip(names, parameter.split(sizes), strict=True):
                if name in products:
                    part.copy_(products[name])
