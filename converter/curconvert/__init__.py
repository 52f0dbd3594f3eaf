"""Compress transformer checkpoints with CUR factors, export ONNX graphs, and verify the result.

artifact = curconvert.convert(curconvert.SourceOptions("model/"), Path("out"), curconvert.ConvertOptions.for_method())
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import wrapt

if TYPE_CHECKING:
    from curconvert.base.plan import Plan
    from curconvert.estimate.total import Estimate
    from curconvert.jobs.bench.result import Bench
    from curconvert.jobs.bench.run import bench
    from curconvert.jobs.conversion import Conversion
    from curconvert.jobs.convert import convert
    from curconvert.jobs.export import export
    from curconvert.jobs.heal import Healing, heal
    from curconvert.jobs.plan import plan, predict
    from curconvert.jobs.resize import Resizing, resize
    from curconvert.jobs.sweep.options import SweepOptions
    from curconvert.jobs.sweep.run import sweep
    from curconvert.jobs.sweep.table import Sweep
    from curconvert.jobs.verify import verify_artifact
    from curconvert.methods.core.options import ConvertOptions
    from curconvert.options.bench import BenchOptions
    from curconvert.options.calibration import CalibrationOptions
    from curconvert.options.execution import ExecutionOptions
    from curconvert.options.heal import HealOptions
    from curconvert.options.quantization import Quantization
    from curconvert.options.resize import ResizeOptions
    from curconvert.options.source import SourceOptions

__all__ = [
    "Bench",
    "BenchOptions",
    "CalibrationOptions",
    "Conversion",
    "ConvertOptions",
    "Estimate",
    "ExecutionOptions",
    "HealOptions",
    "Healing",
    "Plan",
    "Quantization",
    "ResizeOptions",
    "Resizing",
    "SourceOptions",
    "Sweep",
    "SweepOptions",
    "bench",
    "convert",
    "export",
    "heal",
    "plan",
    "predict",
    "resize",
    "sweep",
    "verify_artifact",
]

_HOME = {
    "Bench": "jobs.bench.result",
    "BenchOptions": "options.bench",
    "CalibrationOptions": "options.calibration",
    "Conversion": "jobs.conversion",
    "ConvertOptions": "methods.core.options",
    "Estimate": "estimate.total",
    "ExecutionOptions": "options.execution",
    "HealOptions": "options.heal",
    "Healing": "jobs.heal",
    "Plan": "base.plan",
    "Quantization": "options.quantization",
    "ResizeOptions": "options.resize",
    "Resizing": "jobs.resize",
    "SourceOptions": "options.source",
    "Sweep": "jobs.sweep.table",
    "SweepOptions": "jobs.sweep.options",
    "bench": "jobs.bench.run",
    "convert": "jobs.convert",
    "export": "jobs.export",
    "heal": "jobs.heal",
    "plan": "jobs.plan",
    "predict": "jobs.plan",
    "resize": "jobs.resize",
    "sweep": "jobs.sweep.run",
    "verify_artifact": "jobs.verify",
}


@wrapt.when_imported("transformers.quantizers.auto")
def _register(_module: Any) -> None:
    """Let transformers load artifacts; it is never imported for this alone."""
    from curconvert.artifact import transformers_quantizer  # noqa: F401 - it registers itself


def __getattr__(name: str) -> Any:
    """Import a public name, or the version, at its first use: verify, inspect and generate run without torch."""
    if name == "__version__":
        return importlib.import_module("curconvert_runtime").__version__
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names and those of every module."""
    return sorted({*__all__, "__version__", *(name for name in globals() if name.startswith("__"))})
