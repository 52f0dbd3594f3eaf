"""A safetensors file opens whatever bytes its path has."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import save

from curconvert.base.tensors_file import opened_tensors


@pytest.mark.parametrize("name", [b"plain", "größe 模型".encode(), b"latin-1 \xe9", b"half \xed\xa0\x80", b"\xff\xfe"])
def test_any_path_is_opened(tmp_path: Path, name: bytes) -> None:
    """File systems take any bytes as a name; the tensors are the file's."""
    path = tmp_path / os.fsdecode(name) / "a.safetensors"
    path.parent.mkdir()
    values = np.arange(6, dtype=np.int64).reshape(2, 3)
    path.write_bytes(save({"ids": values}))
    with opened_tensors(path, "numpy") as stored:
        np.testing.assert_array_equal(stored.get_tensor("ids"), values)


@pytest.mark.parametrize("name", [b"plain", b"\xff"])
def test_a_damaged_file_is_the_same_error_under_any_path(tmp_path: Path, name: bytes) -> None:
    """The caller of both kinds handles one class of errors."""
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(b"\x08")
    with pytest.raises(SafetensorError), opened_tensors(path, "numpy"):
        pass
