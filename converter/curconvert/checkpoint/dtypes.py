"""The dtypes of stored and of deployed weights."""

from __future__ import annotations

from curconvert.checkpoint.types import Checkpoint
from curconvert.families.skeleton import EMBEDDING

_STORED_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def deployed_dtype(checkpoint: Checkpoint, dtype: str | None, arithmetic: str) -> str:
    """Return the dtype of the artifact's weights: what is asked for, else what the graph needs, else the original's."""
    return dtype or ("float16" if arithmetic == "float16" else stored_dtype(checkpoint))


def stored_dtype(checkpoint: Checkpoint) -> str:
    """Return the dtype of the checkpoint's weights."""
    return _STORED_DTYPES[checkpoint.tensors[EMBEDDING].dtype]
