"""What every checkpoint reader returns: names, shapes, dtypes and lazily read tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

SourceKind = Literal["safetensors", "directory", "gguf"]


@dataclass(frozen=True)
class ByteRange:
    """Where a tensor's raw little-endian bytes lie.

    Attributes:
        file: The file that holds them.
        offset: First byte, from the start of the file.
        length: Number of bytes.
    """

    file: Path
    offset: int
    length: int


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as its file's header describes it, before any byte of it is read.

    Attributes:
        name: Hugging Face tensor name, such as `model.layers.3.self_attn.q_proj.weight`.
        dtype: safetensors spelling: `F32`, `F16`, `BF16`, `I32`, `I64`.
        shape: torch layout; a linear weight is (out_features, in_features).
        location: Raw bytes, or None when reading means computing (a dequantized GGUF tensor).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    location: ByteRange | None = None


class Checkpoint(Protocol):
    """A transformer checkpoint, opened but not read.

    Attributes:
        kind: What was opened.
        path: The file or folder that the user named (a hub id's local snapshot).
        files: Every file whose bytes make up the weights, in a fixed order (for sha256).
        config: The Hugging Face config as a plain dict, with both dialects of rope and dtype keys present.
        tensors: By canonical name. Fused projections (Phi-3's `qkv_proj`, `gate_up_proj`) appear as their
            row slices `q_proj`, `k_proj`, `v_proj`, `gate_proj`, `up_proj`. A tied `lm_head.weight` is absent.
    """

    kind: SourceKind
    path: Path
    files: tuple[Path, ...]
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor in its stored dtype; memory-mapped (never written to) where the bytes are raw."""
        ...

    def companions(self) -> Companions:
        """Return the non-weight files that travel with the model."""
        ...


@dataclass(frozen=True)
class Companions:
    """Files of a model that are not weights, by the name that they get in the artifact.

    Attributes:
        copied: Files to copy byte for byte, name to source path.
        written: Files that are derived (a tokenizer rebuilt from GGUF, a template), name to content.
    """

    copied: Mapping[str, Path] = field(default_factory=dict)
    written: Mapping[str, bytes] = field(default_factory=dict)
