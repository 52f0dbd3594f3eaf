"""Finds the torch device and sets the dtype of matrix products."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from curconvert.base.errors import BackendError
from curconvert.base.names import CPU


def find_device(name: str) -> torch.device:
    """Return the torch device of a name.

    Raises:
        BackendError: torch has no such device. There is no fallback to the CPU.
    """
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
            raise BackendError(
                f"--device {name}: torch {torch.__version__} is {built} and sees {count} CUDA devices; "
                "install a CUDA build of torch with its driver, or use --device cpu"
            )
    return device


def products_in(dtype: torch.dtype, device_type: str = CPU) -> AbstractContextManager[object]:
    """Return a context in which torch computes matrix products in `dtype`; sums and norms stay float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device_type, dtype)
