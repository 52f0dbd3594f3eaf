"""Conversions at the border to onnxruntime."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from curconvert_runtime.contract import ONNX_BFLOAT16, as_float32, cache_names


def test_names_go_layer_by_layer() -> None:
    """Key before value, layer 0 before layer 1."""
    past, present = cache_names(2)
    assert past == [f"past_key_values.{part}" for part in ("0.key", "0.value", "1.key", "1.value")]
    assert present == [f"present.{part}" for part in ("0.key", "0.value", "1.key", "1.value")]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_float_outputs_become_float32(dtype: str) -> None:
    """Whatever the graph computes in, the caller gets float32."""
    value = np.array([[1.5, -2.0]], dtype)
    result = as_float32(onnxruntime.OrtValue.ortvalue_from_numpy(value))
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, value)


def test_bfloat16_outputs_are_widened() -> None:
    """NumPy cannot hold bfloat16, so its bits become the upper half of a float32."""
    values = np.array([[1.5, -2.0, 3.0]], np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    value = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, ONNX_BFLOAT16)
    np.testing.assert_array_equal(as_float32(value), values)
