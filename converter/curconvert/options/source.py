"""Options that name a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SourceOptions:
    """Says where a checkpoint is, and completes its config.

    Attributes:
        model: A `.safetensors` or `.gguf` file, a Hugging Face directory, or a hub id.
        config: `config.json` for a single weights file.
        config_set: Config values that override or complete the config.
        revision: Hub revision.
    """

    model: str
    config: Path | None = None
    config_set: Mapping[str, Any] = field(default_factory=dict)
    revision: str | None = None
