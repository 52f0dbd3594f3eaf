"""Compress transformer checkpoints with CUR factors, export ONNX graphs that serve them, and verify the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from curconvert.calibration.text import CalibrationOptions
    from curconvert.execution.executor import ExecutionOptions
    from curconvert.options import ConvertOptions, SourceOptions
    from curconvert.pipeline import Conversion, convert, export, plan

__all__ = [
    "CalibrationOptions",
    "Conversion",
    "ConvertOptions",
    "ExecutionOptions",
    "SourceOptions",
    "convert",
    "export",
    "plan",
]

_HOMES = {
    "CalibrationOptions": "curconvert.calibration.text",
    "ConvertOptions": "curconvert.options",
    "ExecutionOptions": "curconvert.execution.executor",
    "SourceOptions": "curconvert.options",
}


@wrapt.when_imported("transformers.quantizers.auto")
def _register(_module: Any) -> None:
    """Let transformers load artifacts; it is never imported for this alone."""
    from curconvert import transformers_quantizer  # noqa: F401 - it registers itself


def __getattr__(name: str) -> Any:
    """Import the converter only when it is used: verify, inspect and generate run without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES.get(name, "curconvert.pipeline")), name)
