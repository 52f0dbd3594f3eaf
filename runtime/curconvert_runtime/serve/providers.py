"""Execution providers: their names in onnxruntime, and the settings that each takes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from curconvert_runtime.errors import InputError, check_integer

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
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
        huge_pages: Ignored; the next version will not take it.
    """

    spinning: bool = True
    prepack: bool = True
    round_activations: bool = True
    huge_pages: bool | None = None

    def __post_init__(self) -> None:
        if self.huge_pages is not None:
            warnings.warn(
                "CpuOptions.huge_pages is ignored; for huge pages start the process with the environment variable "
                "GLIBC_TUNABLES=glibc.malloc.hugetlb=1",
                DeprecationWarning,
                stacklevel=3,
            )

    def configure(self, settings: Any) -> dict[str, str]:
        """Write into onnxruntime's session settings; return those of its CPU provider."""
        settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(self.spinning)))
        settings.add_session_config_entry("session.disable_prepacking", str(int(not self.prepack)))
        settings.add_session_config_entry("session.prepack.enable_parallel", "1")  # since onnxruntime 1.31
        return {}


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
        check_integer("device_id", self.device_id, 0)
        if self.memory_limit is not None:
            check_integer("memory_limit", self.memory_limit, 1)

    def configure(self, _settings: Any) -> dict[str, str]:
        """Return the settings of onnxruntime's CUDA provider; those of the session stay."""
        settings = {**CUDA_PROVIDER, "device_id": str(self.device_id), "enable_cuda_graph": str(int(self.cuda_graph))}
        if self.memory_limit is not None:
            # Doubling would overshoot a limit that a caller chose.
            settings |= {"gpu_mem_limit": str(self.memory_limit), "arena_extend_strategy": "kSameAsRequested"}
        return settings


DeviceOptions = CpuOptions | CudaOptions


def device_options(provider: str, options: DeviceOptions | None) -> DeviceOptions:
    """Return the options of a provider, its defaults for None."""
    if provider not in PROVIDERS:
        raise InputError(f"provider {provider!r}: expected one of {', '.join(PROVIDERS)}")
    expected = CudaOptions if provider == "cuda" else CpuOptions
    if options is None:
        return expected()
    if not isinstance(options, expected):
        raise InputError(f"options {type(options).__name__}: provider {provider} takes {expected.__name__}")
    return options
