"""Builds transformers' model on the meta device: all modules and shapes, no weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from curconvert.base.errors import InputError, UnsupportedError
from curconvert.families.family import family_of
from curconvert.families.split import SplitLinear

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


def build_skeleton(config: Mapping[str, Any]) -> nn.Module:
    """Return the causal language model of a config without allocating its weights.

    Parameters are on the meta device; the small non-persistent buffers (rotary frequencies, embedding scale) are real.
    `SplitLinear` replaces fused projections. Attention is transformers' eager code, because the fused kernels omit
    Gemma 2's soft cap.

    Args:
        config: A normalized Hugging Face config.

    Raises:
        InputError: transformers cannot build a model from the config.
        UnsupportedError: The family is not supported, or holds a buffer that cannot be rebuilt.
    """
    family = family_of(config)
    # Copy the config deeply, because transformers changes nested dicts (rope parameters) in place.
    values = {key: copy.deepcopy(value) for key, value in config.items() if key != "model_type"}
    try:
        model_config = CONFIG_MAPPING[config["model_type"]](**values)
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(
                model_config, attn_implementation="eager", dtype=torch.float32
            )
        _rebuild_buffers(model)
    except (ValueError, TypeError, KeyError, RuntimeError, ZeroDivisionError, OverflowError, AttributeError) as error:
        message = " ".join(str(error).split())[:300]
        raise InputError(
            f"config.json: transformers cannot build this {config['model_type']} model: {message}"
        ) from error
    for layer in model.get_submodule(family.blocks).children():
        for path in family.fused:
            _split(layer, path, family.parts(config, path))
    return model.eval().requires_grad_(False)


def _rebuild_buffers(model: nn.Module) -> None:
    """Compute the buffers that no checkpoint stores, because on the meta device they have no values."""
    for path, module in list(model.named_modules()):
        names = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        if not names:
            continue
        if "inv_freq" in path or any("inv_freq" in name for name in names):
            parent, _, attribute = path.rpartition(".")
            setattr(model.get_submodule(parent), attribute, type(module)(config=module.config))
        elif names == ["embed_scale"]:
            module.embed_scale = torch.tensor(float(module.scalar_embed_scale))
        else:
            raise UnsupportedError(f"module {path} ({type(module).__name__}) has unknown buffers: {', '.join(names)}")


def _split(layer: nn.Module, path: str, parts: Mapping[str, int]) -> None:
    fused = layer.get_submodule(path)
    assert isinstance(fused, nn.Linear)
    bias = fused.bias is not None
    linears = {name: nn.Linear(fused.in_features, size, bias=bias, device="meta") for name, size in parts.items()}
    parent, _, attribute = path.rpartition(".")
    setattr(layer.get_submodule(parent), attribute, SplitLinear(linears))


def canonical_parameters(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module, str]]:
    """Yield (canonical tensor name, owning module, attribute) of each parameter below a module.

    For a part of a `SplitLinear`, the part's name replaces the fused projection's: `self_attn.qkv_proj.q_proj.weight`
    becomes `self_attn.q_proj.weight`.
    """
    for attribute, _ in module.named_parameters(recurse=False):
        yield f"{prefix}{attribute}", module, attribute
    for name, child in module.named_children():
        if isinstance(child, SplitLinear):
            yield from canonical_parameters(child, prefix)
        else:
            yield from canonical_parameters(child, f"{prefix}{name}.")


def expected_tensors(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the canonical name and shape of every tensor that a checkpoint of this config must hold.

    A tied `lm_head.weight` is left out.
    """
    model = build_skeleton(config)
    shapes = {name: tuple(getattr(owner, attr).shape) for name, owner, attr in canonical_parameters(model)}
    if config.get("tie_word_embeddings"):
        shapes.pop(HEAD, None)
    return shapes


def set_tensor(owner: nn.Module, attribute: str, value: torch.Tensor) -> None:
    """Replace a (meta) parameter by a tensor."""
    setattr(owner, attribute, nn.Parameter(value, requires_grad=False))
