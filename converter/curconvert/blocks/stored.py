"""Builds torch modules from a stored artifact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from curconvert.base.errors import IntegrityError
from curconvert.base.names import bias_of
from curconvert.base.packing import dequantize
from curconvert.blocks.linears import factored_linear
from curconvert.families.skeleton import EMBEDDING, HEAD, build_skeleton, canonical_parameters, set_tensor
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.forms import form_of
from curconvert_runtime.format.forms.form import PROVENANCE, Shared
from curconvert_runtime.format.quantized import PARTS, part_name

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32, "I64": torch.int64}


def stored_matrix(artifact: Artifact, name: str) -> NDArray[Any]:
    """Return a tensor of an artifact as stored; a quantized one is dequantized to float32."""
    packing = artifact.quantized.get(name)
    if packing is None:
        return artifact.tensor(name)
    parts = {suffix: artifact.tensor(part_name(name, suffix)) for suffix in packing.parts}
    return dequantize(parts, packing.shape[1], packing.layout)


def stored_tensor(artifact: Artifact, name: str) -> Tensor:
    """Return a stored tensor in its stored dtype, memory-mapped; writing to it does not change the file."""
    header = artifact.tensors[name]
    if header.length == 0:
        return torch.zeros(header.shape, dtype=_DTYPES[header.dtype])
    data = np.memmap(header.file, np.uint8, "c", header.offset, (header.length,))
    return torch.from_numpy(data).view(_DTYPES[header.dtype]).reshape(header.shape)


def build_torch_model(artifact: Artifact) -> nn.Module:
    """Return transformers' model of an artifact in float32, with eager attention and factored linears.

    Raises:
        IntegrityError: A tensor that the config requires is missing or has another shape, or a tensor is left over.
        InputError: transformers rejects the config.
    """
    model = build_skeleton({key: value for key, value in artifact.config.items() if key != "quantization_config"})
    parts = {part_name(name, part) for name in artifact.quantized for part in PARTS}
    unused = {name for name in artifact.tensors if not name.endswith(PROVENANCE) and name not in parts}
    unused |= set(artifact.quantized)
    factored = {m["name"]: m for m in artifact.manifest["matrices"] if form_of(m["form"]).is_compressed}

    def take(name: str) -> Tensor:
        if name not in artifact.tensors and name not in artifact.quantized:
            raise IntegrityError(f"{artifact.path}: tensor {name} of config.json is missing; convert the model again")
        unused.discard(name)
        if name in artifact.quantized:
            return torch.from_numpy(stored_matrix(artifact, name))
        tensor = stored_tensor(artifact, name)
        return tensor.to(torch.float32) if tensor.is_floating_point() else tensor

    for name, owner, attribute in list(canonical_parameters(model)):
        stem, _, kind = name.rpartition(".")
        wanted = tuple(getattr(owner, attribute).shape)
        matrix = factored.get(f"{stem}.weight")
        if matrix is not None:
            if kind == "weight":
                if tuple(matrix["shape"]) != wanted:
                    raise IntegrityError(
                        f"{artifact.path}: {name} has shape {matrix['shape']}, config.json asks for {wanted}"
                    )
                if owner.bias is not None:
                    take(f"{stem}.bias")
                unused.difference_update(factor_names(matrix).values())
                _replace(model, owner, linear_of_artifact(artifact, matrix))
            continue
        absent = HEAD not in artifact.tensors and HEAD not in artifact.quantized
        tied = name == HEAD and absent and artifact.config.get("tie_word_embeddings")
        value = take(EMBEDDING if tied else name)
        if tuple(value.shape) != wanted:
            raise IntegrityError(
                f"{artifact.path}: tensor {name} has shape {tuple(value.shape)}, config.json asks for {wanted}"
            )
        set_tensor(owner, attribute, value)
    if unused:
        raise IntegrityError(f"{artifact.path}: config.json has no place for tensors {', '.join(sorted(unused)[:5])}")
    return model


def linear_of_artifact(artifact: Artifact, matrix: Mapping[str, Any]) -> nn.Module:
    """Return the torch linear of a matrix, in float32.

    Args:
        artifact: The artifact that stores its factors, and its bias if there is one.
        matrix: The matrix's entry in the manifest.

    Raises:
        IntegrityError: A factor is not stored.
    """
    names = factor_names(matrix)
    missing = [name for name in names.values() if name not in artifact.tensors and name not in artifact.quantized]
    if missing:
        raise IntegrityError(f"{artifact.path}: tensor {missing[0]} is missing; convert the model again")
    factors = {
        suffix: torch.from_numpy(stored_matrix(artifact, name))
        if name in artifact.quantized
        else stored_tensor(artifact, name)
        for suffix, name in names.items()
    }
    name = bias_of(matrix["name"])
    bias = stored_tensor(artifact, name) if name in artifact.tensors else None
    return factored_linear(matrix["form"], factors, bias)


def factor_names(matrix: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of a matrix's stored tensors by suffix, from its entry in the manifest."""
    return form_of(matrix["form"]).tensor_names(matrix["name"], Shared.of(matrix))


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in model.modules():
        for attribute, child in parent.named_children():
            if child is old:
                setattr(parent, attribute, new)
                return
