"""Where the model runs and large products are computed."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from curconvert.base.errors import BackendError
from curconvert.base.names import CPU


def find_device(name: str) -> torch.device:
    """Return a device that is there.

    Raises:
        BackendError: torch sees no such device: there is no fallback to the CPU.
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
    """Return a context in which products are computed in a dtype; sums and norms stay float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device_type, dtype)
