"""Keys and values that the model keeps of the tokens so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KeyValueCache:
    """Keys and values of the tokens seen so far, on the session's device.

    Attributes:
        values: `OrtValue`s in graph order: layer 0 key, layer 0 value, layer 1 key, …
        batch: Number of rows.
        length: Columns in use, padding included.
        capacity: Columns allocated when the buffers are shared between past and present (fused graph), else None.
    """

    values: tuple[Any, ...]
    batch: int
    length: int
    capacity: int | None = None
