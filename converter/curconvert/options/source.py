"""Defines the options that locate a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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
