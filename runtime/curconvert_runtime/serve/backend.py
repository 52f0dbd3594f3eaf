"""onnxruntime behind a strict policy: what was asked for runs, or the reason is said; nothing falls back in silence."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from curconvert_runtime.errors import BackendError, InputError
from curconvert_runtime.serve.accuracy import keeping_activations
from curconvert_runtime.serve.providers import PROVIDERS, CpuOptions, CudaOptions, DeviceOptions, device_options

MINIMUM_VERSION = (1, 20)
_BUFFERS_SINCE = (1, 31)
_FUSED_AT_LOAD = ("Sigmoid", "ReduceMean")  # what onnxruntime finds SiLU and a normalisation by


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
    if _release(onnxruntime) < MINIMUM_VERSION:
        needed = ".".join(map(str, MINIMUM_VERSION))
        found = onnxruntime.__version__
        raise BackendError(f"onnxruntime {found} is older than {needed}; run {_extra(provider)} --upgrade")
    module: ModuleType = onnxruntime
    return module


def _release(onnxruntime: ModuleType) -> tuple[int, ...]:
    return tuple(int(part) for part in str(onnxruntime.__version__).split(".")[:2] if part.isdecimal())


def takes_buffers(onnxruntime: ModuleType, provider: str) -> bool:
    """Tell whether weights can be used where a buffer holds their file, without a copy."""
    return provider == "cpu" and _release(onnxruntime) >= _BUFFERS_SINCE


def create_session(
    graph: Path,
    provider: str,
    threads: int | None = None,
    options: DeviceOptions | None = None,
    files: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Load a graph on exactly one execution provider.

    Args:
        graph: Graph file; its external data must have been checked before.
        provider: `cpu` or `cuda`.
        threads: Threads of one operator; None leaves the choice to onnxruntime.
        options: Settings of the provider.
        files: The files of the graph's external data by name, as buffers, which must live as long as the session: it
            reads and uses the weights there. What is not here it maps by itself. Only where `takes_buffers`.

    Returns:
        An `onnxruntime.InferenceSession`.

    Raises:
        InputError: Unknown provider or thread count, or options of another provider.
        BackendError: onnxruntime or the provider is missing, or cannot run this graph.
    """
    chosen = device_options(provider, options)
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
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors reach the caller as exceptions; warnings are about optimisation
    if provider == "cpu" and not gains_by_fusion(graph):
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    # The portable graph's quantised weights become float32 while it is loaded; otherwise every call does that anew.
    settings.add_session_config_entry("session.disable_quant_qdq", "1")
    if threads is not None:
        settings.intra_op_num_threads = threads
    provider_options: Mapping[str, str] = {}
    if isinstance(chosen, CudaOptions):
        provider_options = chosen.provider_options()
    else:
        for key, value in chosen.session_config().items():
            settings.add_session_config_entry(key, value)
    if files:
        settings.add_session_config_entry("session.use_external_initializer_file_buffers_directly", "1")
        lengths = [len(buffer) for buffer in files.values()]
        settings.add_external_initializers_from_files_in_memory(list(files), list(files.values()), lengths)
    try:
        source: str | bytes = str(graph)
        if isinstance(chosen, CpuOptions) and not chosen.round_activations:
            source = keeping_activations(graph.read_bytes())
            settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.parent))
        # Without this key (older versions: with it too) the Python class prints a notice and tries other providers.
        with contextlib.redirect_stdout(io.StringIO()):
            session = onnxruntime.InferenceSession(
                source, settings, providers=[(wanted, dict(provider_options))], enable_fallback=0
            )
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


def gains_by_fusion(graph: Path) -> bool:
    """Tell whether a graph has something to fuse: looking for it is a good part of reading a graph."""
    try:
        content = graph.read_bytes()
    except OSError:  # onnxruntime says it better
        return True
    # onnx.proto3: NodeProto.op_type is field 4.
    return any(b"\x22" + bytes([len(name)]) + name.encode() in content for name in _FUSED_AT_LOAD)


def _version(onnxruntime: ModuleType) -> str:
    return str(getattr(onnxruntime, "__version__", "?"))


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that decide what a session computes, those that are installed."""
    from importlib import metadata  # noqa: PLC0415 - it takes longer to import than this package

    versions = {}
    for name in ("onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
