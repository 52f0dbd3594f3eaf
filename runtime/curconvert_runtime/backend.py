"""onnxruntime behind a strict policy: what was asked for runs, or the reason is said; nothing falls back in silence."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from curconvert_runtime.errors import BackendError, InputError
from curconvert_runtime.serve.accuracy import keeping_activations

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
MINIMUM_VERSION = (1, 20)
_BUFFERS_SINCE = (1, 31)
_FUSED_AT_LOAD = ("Sigmoid", "ReduceMean")  # what onnxruntime finds SiLU and a normalisation by
CUDA_PROVIDER: Mapping[str, str] = MappingProxyType({"enable_skip_layer_norm_strict_mode": "1"})
"""Settings for every graph: normalisations of float16 sum in float32."""


@dataclass(frozen=True)
class CpuOptions:
    """How onnxruntime uses the CPU.

    Attributes:
        spinning: Whether its threads wait for work by spinning: a little faster on a machine of one's own, much slower
            where other programs want the same cores.
        prepack: Whether it makes a rearranged copy of each weight at load. Products of several tokens are faster with
            it. Without it a session starts at once, and the weights stay pages of their file, which processes share.
        round_activations: Whether products with quantised weights may round activations to 8 bits, as the fused graph
            asks: fast. Without it they are computed in float32, with weights of 8 bits very slowly.
        huge_pages: Whether the copies lie in pages of 2 MB (Linux with glibc), with which decoding is faster: all of
            them, however long the system looks for such pages; none; or, None, as many as it has at hand. While a
            session loads, it changes how the whole process allocates, see `curconvert_runtime.serve.huge_pages`. Without
            them the copies are made on all threads.
    """

    spinning: bool = True
    prepack: bool = True
    round_activations: bool = True
    huge_pages: bool | None = None

    def session_config(self) -> dict[str, str]:
        """Return onnxruntime's session settings."""
        return {
            "session.intra_op.allow_spinning": str(int(self.spinning)),
            "session.disable_prepacking": str(int(not self.prepack)),
            # Since onnxruntime 1.31. Threads of its own allocate elsewhere than in the heap that was filled for them.
            "session.prepack.enable_parallel": str(int(self.huge_pages is False)),
        }


@dataclass(frozen=True)
class CudaOptions:
    """How onnxruntime uses a GPU. Written for the documented settings; it has never run on one.

    Attributes:
        device_id: Number of the device.
        memory_limit: Most bytes of onnxruntime's arena on the device; None is no limit.
        cuda_graph: Whether steps of decoding are captured once and replayed: the fused graph only.
    """

    device_id: int = 0
    memory_limit: int | None = None
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        for name, low in (("device_id", 0), ("memory_limit", 1)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
                raise InputError(f"{name} {value!r}: expected an integer of at least {low}")

    def provider_options(self) -> dict[str, str]:
        """Return the settings of onnxruntime's CUDA provider."""
        settings = {**CUDA_PROVIDER, "device_id": str(self.device_id), "enable_cuda_graph": str(int(self.cuda_graph))}
        if self.memory_limit is not None:
            # Doubling would overshoot a limit that a caller chose.
            settings |= {"gpu_mem_limit": str(self.memory_limit), "arena_extend_strategy": "kSameAsRequested"}
        return settings


DeviceOptions = CpuOptions | CudaOptions


def device_options(provider: str, options: DeviceOptions | None) -> DeviceOptions:
    """Return the options of a provider, its defaults for None.

    Raises:
        InputError: Unknown provider, or options of another one.
    """
    if provider not in PROVIDERS:
        raise InputError(f"provider {provider!r}: expected one of {', '.join(PROVIDERS)}")
    expected = CudaOptions if provider == "cuda" else CpuOptions
    if options is None:
        return expected()
    if not isinstance(options, expected):
        raise InputError(f"options {type(options).__name__}: provider {provider} takes {expected.__name__}")
    return options


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
