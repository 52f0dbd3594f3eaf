"""onnxruntime behind a strict policy: what was asked for runs, or the reason is said; nothing falls back in silence."""

from __future__ import annotations

import contextlib
import io
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from curconvert_runtime.errors import BackendError, InputError

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
MINIMUM_VERSION = (1, 20)


def _extra(provider: str) -> str:
    return f"pip install 'curconvert[{'gpu' if provider == 'cuda' else 'cpu'}]'"


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return an exception's text on one line, shortened."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def import_onnxruntime(provider: str) -> ModuleType:
    """Return the onnxruntime module.

    Raises:
        BackendError: Not installed, broken, or older than the graphs need.
    """
    try:
        import onnxruntime  # noqa: PLC0415 - an extra; the package imports without it
    except ImportError as error:
        raise BackendError(f"onnxruntime cannot be imported ({one_line(error)}); run {_extra(provider)}") from None
    version = str(onnxruntime.__version__)
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers < MINIMUM_VERSION:
        needed = ".".join(map(str, MINIMUM_VERSION))
        raise BackendError(f"onnxruntime {version} is older than {needed}; run {_extra(provider)} --upgrade")
    module: ModuleType = onnxruntime
    return module


def create_session(graph: Path, provider: str, threads: int | None = None) -> Any:
    """Load a graph on exactly one execution provider.

    Args:
        graph: Graph file; its external data must have been checked before.
        provider: `cpu` or `cuda`.
        threads: Threads of one operator; None leaves the choice to onnxruntime.

    Returns:
        An `onnxruntime.InferenceSession`.

    Raises:
        InputError: Unknown provider or thread count.
        BackendError: onnxruntime or the provider is missing, or cannot run this graph.
    """
    if provider not in PROVIDERS:
        raise InputError(f"provider {provider!r}: expected one of {', '.join(PROVIDERS)}")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise InputError(f"threads {threads!r}: expected a positive integer")
    onnxruntime = import_onnxruntime(provider)
    wanted = PROVIDERS[provider]
    available = onnxruntime.get_available_providers()
    if wanted not in available:
        raise BackendError(
            f"{wanted} is not available here (found: {', '.join(available)}); run {_extra(provider)} or name another"
        )
    if provider == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        # Finds CUDA and cuDNN that came as pip packages. It prints what it misses; the check below says it as an error.
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors reach the caller as exceptions; warnings are about optimisation
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        # Without this key (older versions: with it too) the Python class prints a notice and tries other providers.
        with contextlib.redirect_stdout(io.StringIO()):
            session = onnxruntime.InferenceSession(str(graph), options, providers=[wanted], enable_fallback=0)
    except Exception as error:  # noqa: BLE001 - onnxruntime's exception classes share no public base
        raise BackendError(
            f"{graph}: onnxruntime {_version(onnxruntime)} cannot load this graph ({one_line(error)}); "
            f"if its opset is newer than this onnxruntime, run {_extra(provider)} --upgrade"
        ) from None
    active = session.get_providers()
    if active[:1] != [wanted]:
        raise BackendError(
            f"{wanted} was asked for, onnxruntime chose {', '.join(active)}; check driver and CUDA versions"
        )
    return session


def _version(onnxruntime: ModuleType) -> str:
    return str(getattr(onnxruntime, "__version__", "?"))


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that decide what a session computes, those that are installed."""
    versions = {}
    for name in ("onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
