"""Finds out whether a path is an adapter, without reading weights."""

from __future__ import annotations

from pathlib import Path

from curconvert.base.errors import InputError, UnsupportedError
from curconvert.checkpoint.adapters.adapter import Adapter
from curconvert.checkpoint.adapters.gguf import gguf_adapter, is_gguf_adapter
from curconvert.checkpoint.adapters.peft import PICKLE_NAME, WEIGHTS_NAME, holds_adapter, peft_adapter
from curconvert.checkpoint.adapters.peft_config import CONFIG_NAME
from curconvert.checkpoint.commands import save_file
from curconvert.checkpoint.files import ModelFolder, regular_file
from curconvert.checkpoint.safetensors_file import read_header
from curconvert.checkpoint.shards import INDEX_NAME, SINGLE_NAME


def find_adapter(path: Path) -> Adapter | None:
    """Return the adapter at a path; None if there is something else.

    Raises:
        InputError: It is an adapter without its settings, or a damaged file.
        UnsupportedError: Its weights are a pickle.
    """
    if path.is_dir():
        return _in_folder(path)
    regular_file(path)
    suffix = path.suffix.lower()
    if suffix == ".safetensors" and holds_adapter(read_header(path)):
        return peft_adapter(path, path)
    if suffix == ".gguf" and is_gguf_adapter(path):
        return gguf_adapter(path)
    return None


def _in_folder(path: Path) -> Adapter | None:
    folder = ModelFolder.at(path)
    if weights := folder.regular(WEIGHTS_NAME):
        return peft_adapter(path, weights)
    if holds_model(path):
        return None
    if pickle := folder.regular(PICKLE_NAME):
        raise UnsupportedError(
            f"{pickle}: pickle files can run code and are not read; if you trust this one, write {WEIGHTS_NAME} beside "
            f"it and give {path} with --base and the model that it changes: {save_file(pickle, path / WEIGHTS_NAME)}"
        )
    if folder.regular("adapters.safetensors"):
        raise UnsupportedError(
            f"{path}: an adapter of MLX, which is not read; merge it with `mlx_lm.fuse` and give the merged folder"
        )
    if folder.regular(CONFIG_NAME):
        raise InputError(f"{path}: holds {CONFIG_NAME} and no {WEIGHTS_NAME}; fetch it, or give a model")
    return None


def holds_model(path: Path) -> bool:
    """Tell whether a folder holds the weights of a whole model."""
    return any((path / name).exists() for name in (SINGLE_NAME, INDEX_NAME))
