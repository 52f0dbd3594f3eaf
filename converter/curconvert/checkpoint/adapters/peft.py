"""Reads LoRA adapters as PEFT stores them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from curconvert.base.errors import InputError, UnsupportedError
from curconvert.checkpoint.adapters.adapter import Adapter, Changes
from curconvert.checkpoint.adapters.changes import Change, Load, LowRank, Offset, Replacement, Rows
from curconvert.checkpoint.adapters.peft_config import CONFIG_NAME, LoraSettings, base_name, read_settings
from curconvert.checkpoint.files import ModelFolder
from curconvert.checkpoint.safetensors_file import DTYPES, map_tensor, read_header
from curconvert.checkpoint.source_files import SourceFiles
from curconvert.checkpoint.types import TensorInfo

WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
_PREFIX = "base_model.model."
_LINEAR = ("lora_A.weight", "lora_B.weight")
_EMBEDDING = ("lora_embedding_A", "lora_embedding_B")
_KEY = re.compile(
    r"(?P<module>.+?)\.(?P<kind>lora_[AB]\.weight|lora_B\.bias|lora_embedding_[AB]|lora_magnitude_vector|"
    r"token_adapter\.trainable_tokens_delta|base_layer\.(?:weight|bias))"
    r"(?P<saved>(?<=vector)\.weight)?"
)


def holds_adapter(names: Mapping[str, TensorInfo]) -> bool:
    """Tell from the names of a file's tensors whether it holds a LoRA adapter."""
    return any((match := _KEY.fullmatch(name)) and not match["kind"].startswith("base_layer") for name in names)


def peft_adapter(path: Path, weights: Path) -> Adapter:
    """Return the adapter in a file, with the settings in its folder.

    Args:
        path: The file or folder that the user named.
        weights: The file.

    Raises:
        InputError: There are no settings beside it, or they are malformed.
        UnsupportedError: It is of another kind, or uses what is not read.
    """
    config = ModelFolder.at(weights.parent).regular(CONFIG_NAME)
    if config is None:
        raise InputError(f"{weights}: a LoRA adapter without {CONFIG_NAME} beside it, which holds its scale; fetch it")
    files, settings = SourceFiles((weights, config)), read_settings(config)
    return Adapter(path, files, base_name(config), lambda _: _changes(files, settings))


def _changes(files: SourceFiles, settings: LoraSettings) -> Changes:
    weights = files[0]
    tensors = read_header(weights)

    def load(info: TensorInfo) -> Load:
        return lambda: map_tensor(info, files)

    for name, info in tensors.items():
        if info.dtype not in DTYPES:
            raise UnsupportedError(f"{weights}: tensor {name} has dtype {info.dtype}, expected F32, F16 or BF16")
    modules: dict[str, dict[str, TensorInfo]] = {}
    changes: dict[str, list[Change]] = {}
    for name, info in tensors.items():
        bare = name.removeprefix(_PREFIX)
        if match := _KEY.fullmatch(bare):
            modules.setdefault(match["module"], {})[match["kind"]] = info
        else:
            changes.setdefault(bare, []).append(Replacement(load(info), info.shape))
    for module, parts in modules.items():
        _Module(module, parts, load, settings, str(weights)).add_to(changes)
    return changes


@dataclass(frozen=True)
class _Module:
    """One module of the base that the adapter changes.

    Attributes:
        path: Its path in the base.
        parts: The adapter's tensors for it, by what they are.
        load: Returns what loads a tensor.
        settings: The adapter's settings.
        source: Name of the file in messages.
    """

    path: str
    parts: Mapping[str, TensorInfo]
    load: Callable[[TensorInfo], Load]
    settings: LoraSettings
    source: str

    def add_to(self, changes: dict[str, list[Change]]) -> None:
        """Add the changes of the module's tensors: first what replaces them, then what is added."""
        weight, bias = changes.setdefault(f"{self.path}.weight", []), f"{self.path}.bias"
        for kind in ("weight", "bias"):
            if info := self.parts.get(f"base_layer.{kind}"):
                changes.setdefault(f"{self.path}.{kind}", []).append(Replacement(self.load(info), info.shape))
        if info := self.parts.get("token_adapter.trainable_tokens_delta"):
            weight.append(Rows(self.load(info), info.shape, self._trained_tokens()))
        for down, up in (_LINEAR, _EMBEDDING):
            if down in self.parts or up in self.parts:
                weight.append(self._low_rank(self._part(down), self._part(up), embedding=down == _EMBEDDING[0]))
        if info := self.parts.get("lora_B.bias"):
            scale = self.settings.scale_of(self.path)
            changes.setdefault(bias, []).append(Offset(self.load(info), info.shape, scale))
        if not weight:
            del changes[f"{self.path}.weight"]

    def _low_rank(self, down: TensorInfo, up: TensorInfo, *, embedding: bool) -> LowRank:
        rank = self.settings.rank_of(self.path)
        for info, place in ((down, 0), (up, 1)):
            if len(info.shape) != 2 or info.shape[place] != rank:
                raise InputError(
                    f"{self.source}: tensor {info.name} is {list(info.shape)}, {CONFIG_NAME} says rank {rank}"
                )
        magnitude = self.parts.get("lora_magnitude_vector")
        if self.settings.normalized != (magnitude is not None):
            found = "is missing" if magnitude is None else "is stored"
            raise InputError(
                f"{self.source}: tensor {self.path}.lora_magnitude_vector {found}, {CONFIG_NAME} says use_dora "
                f"{str(self.settings.normalized).lower()}; fetch both files again"
            )
        size = (up.shape[0], down.shape[1])
        if magnitude is not None and magnitude.shape not in ((size[0],), (1, size[0])):  # Conv1D has the second shape
            raise InputError(f"{self.source}: tensor {magnitude.name} is {list(magnitude.shape)}, expected [{size[0]}]")
        transposed = embedding or self.settings.transposed
        lengths = None if magnitude is None else self.load(magnitude)
        return LowRank(self.load(down), self.load(up), size, self.settings.scale_of(self.path), lengths, transposed)

    def _part(self, kind: str) -> TensorInfo:
        if kind not in self.parts:
            raise InputError(f"{self.source}: tensor {self.path}.{kind} is missing, and its counterpart is stored")
        return self.parts[kind]

    def _trained_tokens(self) -> list[int]:
        for name, indices in self.settings.trained_tokens.items():
            if f".{self.path}".endswith(f".{name}"):
                return list(indices)
        raise InputError(f"{self.source}: {CONFIG_NAME} does not say which tokens of {self.path} were trained")
