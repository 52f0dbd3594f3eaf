"""Defines the result of every checkpoint reader: names, shapes, dtypes and lazily read tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from curconvert.base.errors import InputError
from curconvert.checkpoint.source_files import SourceFiles
from curconvert.checkpoint.special_tokens import SpecialTokens

SourceKind = Literal["safetensors", "directory", "gguf"]


@dataclass(frozen=True)
class ByteRange:
    """Position of a tensor's raw little-endian bytes in a file.

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
    """Name, dtype, shape and position of a tensor whose data is not read yet.

    Attributes:
        name: Hugging Face tensor name, such as `model.layers.3.self_attn.q_proj.weight`.
        dtype: safetensors spelling: `F32`, `F16`, `BF16`, `I32`, `I64`.
        shape: torch layout; a linear weight is (out_features, in_features).
        location: Position of the raw bytes; None if reading computes the values (a dequantized GGUF tensor).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    location: ByteRange | None = None


class Checkpoint(Protocol):
    """A transformer checkpoint, opened but not read.

    Attributes:
        kind: Kind of the source.
        path: The file or folder that the user named, or a hub id's local snapshot.
        files: Every file that holds weights, in a fixed order (for sha256).
        config: The Hugging Face config as a plain dict, with both dialects of rope and dtype keys present. `dtype` is
            the one that holds every stored weight.
        tensors: By canonical name. Fused projections (Phi-3's `qkv_proj`, `gate_up_proj`) appear as their
            row slices `q_proj`, `k_proj`, `v_proj`, `gate_proj`, `up_proj`. A tied `lm_head.weight` is absent.
        ignore: Patterns of tensors that the user left out.
        notices: What was left out or renamed, one sentence each.
    """

    kind: SourceKind
    path: Path
    files: SourceFiles
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    ignore: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor in its stored dtype; raw bytes are memory-mapped, so do not write to it."""
        ...

    def companions(self) -> Companions:
        """Return the files besides the weights that the artifact gets."""
        ...


@dataclass(frozen=True)
class Companions:
    """Files of a model that are not weights, by their name in the artifact.

    Attributes:
        copied: Source path of each file that is copied unchanged.
        written: Content of each file that is generated (a tokenizer from GGUF, a template).
        special_tokens: Begin, end and padding tokens, as all files of the artifact state them.
        notices: What a user should know about these files, one sentence each.
    """

    copied: Mapping[str, Path] = field(default_factory=dict)
    written: Mapping[str, bytes] = field(default_factory=dict)
    special_tokens: SpecialTokens = field(default_factory=SpecialTokens)
    notices: tuple[str, ...] = ()

    def content(self, name: str) -> bytes | None:
        """Return the content of a file, or None if there is no such file.

        Raises:
            InputError: It cannot be read.
        """
        if name in self.written:
            return self.written[name]
        path = self.copied.get(name)
        try:
            return None if path is None else path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
