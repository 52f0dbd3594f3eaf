"""Re-exports the error classes of `curconvert_runtime.errors`."""

from __future__ import annotations

from curconvert_runtime.errors import (
    BackendError,
    CurConvertError,
    InputError,
    IntegrityError,
    UnsupportedError,
    VerificationError,
)

__all__ = [
    "BackendError",
    "CurConvertError",
    "InputError",
    "IntegrityError",
    "UnsupportedError",
    "VerificationError",
]
