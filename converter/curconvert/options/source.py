"""Defines the options that locate a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from curconvert.base.errors import InputError
from curconvert_runtime.format.files import MANIFEST


@dataclass(frozen=True)
class SourceOptions:
    """Where a checkpoint is, and what its files do not say.

    Attributes:
        model: A `.safetensors` or `.gguf` file, a Hugging Face folder, or a hub id.
        config: A `config.json` to use instead of the model's own.
        config_set: Values that override or complete the config.
        revision: Branch, tag or commit of a model on the hub.
        base: The model that an adapter changes, if `model` is an adapter.
        ignore: Patterns, such as `mtp.*`, of stored tensors that the model does not know and that are left out.
    """

    model: str
    config: Path | None = None
    config_set: Mapping[str, Any] = field(default_factory=dict)
    revision: str | None = None
    ignore: tuple[str, ...] = ()
    base: str | None = None


def check_base(base: str | None, against: str | None) -> None:
    """Raise `InputError` if a base is given, and nothing or an artifact in the place of the adapter that changes it."""
    if base is not None and against is None:
        raise InputError(f"--base {base}: needs --against with the adapter that changes it")
    if base is not None and against is not None and (Path(against) / MANIFEST).is_file():
        raise InputError(f"{against}: no LoRA adapter, so there is nothing to merge into a base; leave out --base")
