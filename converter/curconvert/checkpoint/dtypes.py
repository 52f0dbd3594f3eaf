"""Chooses the dtype of an artifact's weights."""

from __future__ import annotations

from curconvert.base.dtypes import dtype_name
from curconvert.checkpoint.safetensors_file import DTYPES
from curconvert.checkpoint.types import Checkpoint
from curconvert.families.skeleton import EMBEDDING


def deployed_dtype(checkpoint: Checkpoint, dtype: str | None, arithmetic: str) -> str:
    """Return the dtype of the artifact's weights: the requested one, float16 for float16 graphs, or the original's."""
    return dtype or ("float16" if arithmetic == "float16" else stored_dtype(checkpoint))


def stored_dtype(checkpoint: Checkpoint) -> str:
    """Return the dtype of the checkpoint's weights."""
    return dtype_name(DTYPES[checkpoint.tensors[EMBEDDING].dtype])
