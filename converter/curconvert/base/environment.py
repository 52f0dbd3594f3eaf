"""Describes the versions and hardware that the bytes of an artifact depend on."""

from __future__ import annotations

import platform

import torch


def environment() -> dict[str, str]:
    """Return versions and hardware that the bytes of an artifact depend on, besides input and options."""
    return {
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
    }
