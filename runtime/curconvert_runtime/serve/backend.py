"""onnxruntime behind a strict policy: what was asked for runs, or the reason is said; nothing falls back in silence."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from curconvert_runtime.errors import BackendError, check_integer
from curconvert_runtime.serve.graph_edits import with_first_logits
from curconvert_runtime.serve.providers import ProviderOptions, provider_named

MINIMUM_VERSION = (1, 20)


def _install(provider: str) -> str:
    return f"pip install '{provider_named(provider).package}'"


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return an exception's text on one line, shortened."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def import_onnxruntime(provider: str) -> ModuleType:
    """Return the onnxruntime module."""
    try:
        import onnxruntime  # noqa: PLC0415 - an extra; the package imports without it
    except ImportError as error:
        raise BackendError(f"onnxruntime cannot be imported ({one_line(error)}); run {_install(provider)}") from None
    release = tuple(int(part) for part in str(onnxruntime.__version__).split(".")[:2] if part.isdecimal())
    if release < MINIMUM_VERSION:
        needed = ".".join(map(str, MINIMUM_VERSION))
        found = onnxruntime.__version__
        raise BackendError(f"onnxruntime {found} is older than {needed}; run {_install(provider)} --upgrade")
    module: ModuleType = onnxruntime
    return module


def create_session(graph: Path, provider: str, threads: int | None, options: ProviderOptions) -> Any:
    """Load a graph, checked before with its external data, on exactly one execution provider.

    Returns:
        An `onnxruntime.InferenceSession`; where the graph can leave logits out, `FIRST_LOGITS` is an input.
    """
    entry = provider_named(provider)
    if threads is not None:
        check_integer("threads", threads, 1)
    onnxruntime = import_onnxruntime(provider)
    available = onnxruntime.get_available_providers()
    if entry.name not in available:
        raise BackendError(
            f"{entry.name} is not available here (found: {', '.join(available)}); run {_install(provider)} "
            "or name another"
        )
    if entry.preloads and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors reach the caller as exceptions; warnings are about optimization
    # The portable graph's quantized weights become float32 while it is loaded; otherwise every call does that anew.
    settings.add_session_config_entry("session.disable_quant_qdq", "1")
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.parent))
    if threads is not None:
        settings.intra_op_num_threads = threads
    own = options.configure(settings)
    try:
        content = options.edited(with_first_logits(graph.read_bytes()))
        # Without the last argument the Python class prints a notice and tries other providers.
        session = onnxruntime.InferenceSession(content, settings, providers=[(entry.name, own)], enable_fallback=0)
    except Exception as error:  # noqa: BLE001 - onnxruntime's exception classes share no public base
        raise BackendError(
            f"{graph}: onnxruntime {onnxruntime.__version__} cannot load this graph ({one_line(error)}); "
            f"if its opset is newer than this onnxruntime, run {_install(provider)} --upgrade"
        ) from None
    active = session.get_providers()
    if active[:1] != [entry.name]:
        raise BackendError(
            f"{entry.name} was asked for, onnxruntime chose {', '.join(active)}; check the versions of its driver and "
            "libraries"
        )
    return session
