"""Names at the border to onnxruntime."""

from __future__ import annotations

from curconvert_runtime.format.contract import cache_names


def test_names_go_layer_by_layer() -> None:
    """Key before value, layer 0 before layer 1."""
    past, present = cache_names(2)
    assert past == [f"past_key_values.{part}" for part in ("0.key", "0.value", "1.key", "1.value")]
    assert present == [f"present.{part}" for part in ("0.key", "0.value", "1.key", "1.value")]
