"""Reads LoRA adapters in GGUF, as llama.cpp stores them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from curconvert.base.errors import InputError, UnsupportedError
from curconvert.checkpoint.adapters.adapter import Adapter, Changes
from curconvert.checkpoint.adapters.changes import Load, LowRank
from curconvert.checkpoint.gguf import StoredGguf, canonical_name, decode, heads_to_unpermute, read_file, unpermute
from curconvert.checkpoint.source_files import SourceFiles

_KINDS = (".lora_a", ".lora_b")
_EMBEDDING = "token_embd.weight"
_ALPHA = "adapter.lora.alpha"
# Key, type (string) and value of the pair `general.type = adapter`, which is one of the first in the file.
_MARK = b"general.type" + (8).to_bytes(4, "little") + (7).to_bytes(8, "little") + b"adapter"
_MARKED_WITHIN = 2**16


def is_gguf_adapter(path: Path) -> bool:
    """Tell whether a GGUF file says that it is an adapter. This reads only its beginning."""
    with path.open("rb") as file:
        return _MARK in file.read(_MARKED_WITHIN)


def gguf_adapter(path: Path) -> Adapter:
    """Return the adapter in a GGUF file."""
    files = SourceFiles((path,))
    return Adapter(path, files, None, lambda config: _changes(path, files, config))


def _changes(path: Path, files: SourceFiles, config: Mapping[str, Any]) -> Changes:
    metadata, stored = read_file(path)
    if (kind := metadata.get("adapter.type")) != "lora":
        raise UnsupportedError(f"{path}: adapter.type {kind!r:.60} is not read, only lora; give a merged model")
    if "adapter.alora.invocation_tokens" in metadata:
        raise UnsupportedError(
            f"{path}: an activated LoRA, which changes the model only after certain tokens; give the base model itself"
        )
    alpha = metadata.get(_ALPHA) or 0.0
    if not isinstance(alpha, int | float):
        raise InputError(f"{path}: {_ALPHA} is {alpha!r:.60}, expected a number")
    architecture = str(metadata.get("general.architecture"))
    changes: dict[str, list[LowRank]] = {}
    for name in dict.fromkeys(name.removesuffix(_KINDS[0]).removesuffix(_KINDS[1]) for name in stored):
        down, up = (stored.get(name + kind) for kind in _KINDS)
        if down is None or up is None:
            raise InputError(f"{path}: tensor {name:.200} has no pair of lora_a and lora_b")
        canonical = canonical_name(path, architecture, name)
        permuted = heads_to_unpermute(architecture, canonical, config)
        flipped = name == _EMBEDDING  # its pair is stored so that a token is a row of A
        loads = _loads(down, files, flipped=flipped), _loads(up, files, heads=permuted)
        size, rank = _size(path, name, down.shape[::-1] if flipped else down.shape, up.shape)
        changes[canonical] = [LowRank(*loads, size, alpha / rank if alpha else 1.0, transposed=flipped)]
    return changes


def _size(path: Path, name: str, down: tuple[int, ...], up: tuple[int, ...]) -> tuple[tuple[int, int], int]:
    """Return outputs and inputs of a pair of matrices, and its rank."""
    if not len(down) == len(up) == 2 or not up[1] or down[0] != up[1]:
        raise InputError(f"{path}: {name} has lora_a {list(down)} and lora_b {list(up)}, which do not fit")
    return (up[0], down[1]), up[1]


def _loads(entry: StoredGguf, files: SourceFiles, *, flipped: bool = False, heads: int | None = None) -> Load:
    def load() -> torch.Tensor:
        tensor = decode(entry, files)
        if heads is not None:
            tensor = unpermute(tensor, heads)
        return tensor.T if flipped else tensor

    return load
