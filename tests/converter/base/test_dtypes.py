"""Names of dtypes."""

from __future__ import annotations

import pytest
import torch

from curconvert.base.dtypes import dtype_name, torch_dtype


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float32, "float32"), (torch.float16, "float16"), (torch.bfloat16, "bfloat16"), (torch.uint8, "uint8")],
)
def test_there_and_back(dtype: torch.dtype, name: str) -> None:
    """Names are those of config.json."""
    assert dtype_name(dtype) == name
    assert torch_dtype(name) is dtype
