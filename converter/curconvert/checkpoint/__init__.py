"""Reads checkpoints: safetensors files, Hugging Face folders and hub ids, GGUF files."""

from __future__ import annotations

from curconvert.checkpoint.open import open_checkpoint
from curconvert.checkpoint.types import ByteRange, Checkpoint, Companions, SourceKind, TensorInfo

__all__ = ["ByteRange", "Checkpoint", "Companions", "SourceKind", "TensorInfo", "open_checkpoint"]
