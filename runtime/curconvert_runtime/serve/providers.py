"""Lists the execution providers. Everything that the code must know about a provider is a field of its entry."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from curconvert_runtime.errors import InputError, check_integer
from curconvert_runtime.serve.graph_edits import keeping_activations

_CUDA = MappingProxyType({"enable_skip_layer_norm_strict_mode": "1"})  # normalizations of float16 sum in float32


@dataclass(frozen=True)
class ProviderOptions:
    """Settings of a provider. This base class has none; subclasses add theirs."""

    @property
    def device_id(self) -> int:
        """Number of the device whose memory holds inputs, outputs and cache."""
        return 0

    @property
    def captures(self) -> bool:
        """Whether decoding steps are captured as a CUDA graph and replayed."""
        return False

    def configure(self, settings: Any) -> dict[str, str]:
        """Set onnxruntime's `SessionOptions` in place, and return the provider's own options."""
        return {}

    def edited(self, graph: bytes) -> bytes:
        """Return the graph's bytes as they must be loaded with these settings."""
        return graph

    @classmethod
    def exact(cls) -> ProviderOptions:
        """Return options under which quantized products do not round activations."""
        return cls()


@dataclass(frozen=True)
class CpuOptions(ProviderOptions):
    """How onnxruntime uses the CPU.

    Attributes:
        spinning: Threads spin while they wait for work. Slightly faster on an idle machine, much slower on a busy one.
        prepack: Copy each weight into a faster layout at load. Speeds up prompts and batches. Without it a session
            starts faster, and processes share the memory of the weight file.
        round_activations: Let the fused graph round activations to 8 bits in products with quantized weights, for
            speed. Without it they run in float32, which is very slow with 8-bit weights.
        huge_pages: Deprecated and ignored.
    """

    spinning: bool = True
    prepack: bool = True
    round_activations: bool = True
    huge_pages: bool | None = None

    def __post_init__(self) -> None:
        if self.huge_pages is not None:
            advice = "start the process with the environment variable GLIBC_TUNABLES=glibc.malloc.hugetlb=1"
            warnings.warn(
                f"CpuOptions.huge_pages is ignored; for huge pages {advice}", DeprecationWarning, stacklevel=3
            )

    def configure(self, settings: Any) -> dict[str, str]:
        """See `ProviderOptions.configure`."""
        settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(self.spinning)))
        # Never set parallel prepacking here: onnxruntime would then keep the file's pages until all copies exist.
        settings.add_session_config_entry("session.disable_prepacking", str(int(not self.prepack)))
        return {}

    def edited(self, graph: bytes) -> bytes:
        """See `ProviderOptions.edited`."""
        return graph if self.round_activations else keeping_activations(graph)

    @classmethod
    def exact(cls) -> CpuOptions:
        """See `ProviderOptions.exact`."""
        return cls(round_activations=False)


@dataclass(frozen=True)
class CudaOptions(ProviderOptions):
    """How onnxruntime uses an NVIDIA GPU. Follows onnxruntime's documentation; never run on a GPU.

    Attributes:
        device_id: Number of the GPU.
        memory_limit: Limit of onnxruntime's memory on the GPU, in bytes; None is no limit.
        cuda_graph: Capture decoding steps as CUDA graphs and replay them. Fused graph only.
    """

    device_id: int = 0
    memory_limit: int | None = None
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        check_integer("device_id", self.device_id, 0)
        if self.memory_limit is not None:
            check_integer("memory_limit", self.memory_limit, 1)

    @property
    def captures(self) -> bool:
        """See `ProviderOptions.captures`."""
        return self.cuda_graph

    def configure(self, _settings: Any) -> dict[str, str]:
        """See `ProviderOptions.configure`; the session's settings stay unchanged."""
        settings = {**_CUDA, "device_id": str(self.device_id), "enable_cuda_graph": str(int(self.cuda_graph))}
        if self.memory_limit is not None:
            # Doubling would overshoot a limit that a caller chose.
            settings |= {"gpu_mem_limit": str(self.memory_limit), "arena_extend_strategy": "kSameAsRequested"}
        return settings


@dataclass(frozen=True)
class Provider:
    """What the code must know about one execution provider.

    Attributes:
        name: onnxruntime's name of the provider.
        package: Package that pip installs for it.
        options: Class of its options; without arguments it has the defaults.
        memory: onnxruntime's name of the provider's memory.
        graph: The graph it runs by default: the one whose operators it has kernels for.
        arithmetic: Its fastest number format. Fused graphs made for this provider compute in it.
        quantized: Whether its kernels multiply with quantized weights.
        preloads: Whether its libraries may come from pip packages, which onnxruntime must preload.
        genai: Its entry in onnxruntime-genai's configuration, by that package's provider name; empty for the default.
    """

    name: str
    package: str
    options: type[ProviderOptions] = ProviderOptions
    memory: str = "cpu"
    graph: Literal["portable", "fused"] = "fused"
    arithmetic: Literal["float32", "float16"] = "float32"
    quantized: bool = True
    preloads: bool = False
    genai: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


PROVIDERS = {
    "cpu": Provider("CPUExecutionProvider", "curconvert[cpu]", CpuOptions),
    "cuda": Provider(
        "CUDAExecutionProvider", "curconvert[gpu]", CudaOptions, memory="cuda", arithmetic="float16", quantized=False,
        preloads=True, genai={"cuda": _CUDA},
    ),
}  # fmt: skip


def provider_named(name: str) -> Provider:
    """Return a provider's entry, or raise InputError with the known names."""
    if name not in PROVIDERS:
        raise InputError(f"provider {name!r}: expected one of {', '.join(PROVIDERS)}")
    return PROVIDERS[name]


def provider_options(name: str, options: ProviderOptions | None) -> ProviderOptions:
    """Return `options` after a check that they are the provider's; for None, its defaults."""
    expected = provider_named(name).options
    if options is None:
        return expected()
    if not isinstance(options, expected):
        raise InputError(f"options {type(options).__name__}: provider {name} takes {expected.__name__}")
    return options
