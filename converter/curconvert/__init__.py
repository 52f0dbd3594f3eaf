"""Compress transformer checkpoints with CUR factors, export ONNX graphs that serve them, and verify the result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from curconvert.jobs.conversion import Conversion
    from curconvert.jobs.convert import convert
    from curconvert.jobs.export import export
    from curconvert.jobs.plan import plan
    from curconvert.methods.core.options import ConvertOptions
    from curconvert.options.calibration import CalibrationOptions
    from curconvert.options.execution import ExecutionOptions
    from curconvert.options.source import SourceOptions

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
    "CalibrationOptions": "curconvert.options.calibration",
    "Conversion": "curconvert.jobs.conversion",
    "ConvertOptions": "curconvert.methods.core.options",
    "ExecutionOptions": "curconvert.options.execution",
    "SourceOptions": "curconvert.options.source",
    "convert": "curconvert.jobs.convert",
    "export": "curconvert.jobs.export",
    "plan": "curconvert.jobs.plan",
}


@wrapt.when_imported("transformers.quantizers.auto")
def _register(_module: Any) -> None:
    """Let transformers load artifacts; it is never imported for this alone."""
    from curconvert.artifact import transformers_quantizer  # noqa: F401 - it registers itself


def __getattr__(name: str) -> Any:
    """Import the converter only when it is used: verify, inspect and generate run without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
