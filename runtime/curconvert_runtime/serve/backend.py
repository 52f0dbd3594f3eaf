"""Creates onnxruntime sessions that run on the requested execution provider or fail with a reason; no fallback."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

from curconvert_runtime.errors import BackendError, check_integer
from curconvert_runtime.serve.graph_edits import with_first_logits
from curconvert_runtime.serve.providers import ProviderOptions, provider_named
from curconvert_schemas.folder import link_boundary
from curconvert_schemas.onnx_locations import with_data_under

MINIMUM_VERSION = (1, 24)  # the first that checks itself that external data are inside the folder


def _install(provider: str) -> str:
    from curconvert_runtime.version import installed_versions  # noqa: PLC0415 - slow, and for errors only

    found = " ".join(name for name in installed_versions() if name.startswith("onnxruntime"))  # only one may be there
    return f"{found and f'pip uninstall -y {found}, then '}pip install '{provider_named(provider).package}'"


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return an exception's text on one line, shortened."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def import_onnxruntime(provider: str) -> ModuleType:
    """Return the onnxruntime module; raise `BackendError` if it is missing or older than `MINIMUM_VERSION`."""
    try:
        import onnxruntime  # noqa: PLC0415 - an extra; the package imports without it
    except ImportError as error:
        raise BackendError(f"onnxruntime cannot be imported ({one_line(error)}); run {_install(provider)}") from None
    release = tuple(int(part) for part in str(onnxruntime.__version__).split(".")[:2] if part.isdecimal())
    if release < MINIMUM_VERSION:
        needed = ".".join(map(str, MINIMUM_VERSION))
        found = onnxruntime.__version__
        raise BackendError(f"onnxruntime {found} is older than {needed}; to upgrade, run {_install(provider)}")
    module: ModuleType = onnxruntime
    return module


def create_session(graph: Path, provider: str, threads: int | None, options: ProviderOptions) -> Any:
    """Load a graph on exactly one execution provider. The caller has checked the graph and its external data.

    Returns:
        An `onnxruntime.InferenceSession`. It has the input `FIRST_LOGITS` if the graph can leave out logits.
    """
    entry = provider_named(provider)
    if threads is not None:
        check_integer("threads", threads, 1)
    onnxruntime = import_onnxruntime(provider)
    available = onnxruntime.get_available_providers()
    if entry.name not in available:
        raise BackendError(
            f"{entry.name} is not available here (found: {', '.join(available)}); run {_install(provider)}, "
            "or name another provider"
        )
    if entry.preloads and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors reach the caller as exceptions; warnings are about optimization
    # Dequantize the portable graph's weights once, at load. Otherwise every call dequantizes them again.
    settings.add_session_config_entry("session.disable_quant_qdq", "1")
    # onnxruntime follows links only inside the folder that it is given. A name in bytes need not be UTF-8.
    root = link_boundary(graph.parent)
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", os.fsencode(root))
    if threads is not None:
        settings.intra_op_num_threads = threads
    own = options.configure(settings)
    try:
        content = options.edited(with_first_logits(graph.read_bytes()))
        if root != graph.parent:
            content = with_data_under(content, graph.parent.relative_to(root).as_posix())
        # Without the last argument the Python class prints a notice and tries other providers.
        session = onnxruntime.InferenceSession(content, settings, providers=[(entry.name, own)], enable_fallback=0)
    except Exception as error:  # noqa: BLE001 - onnxruntime's exception classes share no public base
        raise BackendError(
            f"{graph}: onnxruntime {onnxruntime.__version__} cannot load this graph ({one_line(error)}); "
            f"if its opset is newer than this onnxruntime, upgrade it: run {_install(provider)}"
        ) from None
    active = session.get_providers()
    if active[:1] != [entry.name]:
        raise BackendError(
            f"{entry.name} was requested, but onnxruntime chose {', '.join(active)}; check the versions of its driver "
            "and libraries"
        )
    return session
