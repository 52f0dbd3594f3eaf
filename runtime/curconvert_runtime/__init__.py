"""Runs and verifies curconvert artifacts with onnxruntime, NumPy and tokenizers. Needs no torch and no transformers.

session = curconvert_runtime.load("out/")
print(session.generate("The capital of France is").text)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curconvert_runtime.checks.report import VerificationReport
    from curconvert_runtime.checks.verification import VerifyOptions, verify
    from curconvert_runtime.errors import (
        BackendError,
        CurConvertError,
        InputError,
        IntegrityError,
        UnsupportedError,
        VerificationError,
    )  # fmt: skip
    from curconvert_runtime.format.artifact import Artifact
    from curconvert_runtime.serve.generation import Completion, GenerationOptions, generate, stream
    from curconvert_runtime.serve.providers import CpuOptions, CudaOptions
    from curconvert_runtime.serve.runner import KeyValueCache
    from curconvert_runtime.serve.session import Session, load
    from curconvert_runtime.serve.text import Tokenizer

__all__ = [
    "Artifact", "BackendError", "Completion", "CpuOptions", "CudaOptions", "CurConvertError", "GenerationOptions",
    "InputError", "IntegrityError", "KeyValueCache", "Session", "Tokenizer", "UnsupportedError", "VerificationError",
    "VerificationReport", "VerifyOptions", "generate", "load", "stream", "verify",
]  # fmt: skip

_HOME = {
    "Artifact": "format.artifact",
    "VerificationReport": "checks.report",
    "KeyValueCache": "serve.runner",
    "Tokenizer": "serve.text",
    **dict.fromkeys(("CpuOptions", "CudaOptions"), "serve.providers"),
    **dict.fromkeys(("Session", "load"), "serve.session"),
    **dict.fromkeys(("Completion", "GenerationOptions", "generate", "stream"), "serve.generation"),
    **dict.fromkeys(("VerifyOptions", "verify"), "checks.verification"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that `import curconvert_runtime` itself is fast."""
    if name == "__version__":
        from curconvert_runtime.version import version  # noqa: PLC0415 - it imports importlib.metadata

        return version()
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.{_HOME.get(name, 'errors')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names and those of every module."""
    return sorted({*__all__, "__version__", *(name for name in globals() if name.startswith("__"))})
