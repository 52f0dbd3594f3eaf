"""Builds the dense graph of a family with mobius. The lowering keeps its topology and weight names."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mobius
import onnx_ir as ir
from mobius import EpCapabilities, register_ep

from curconvert.base.errors import UnsupportedError
from curconvert.families.family import SUPPORTED_FAMILIES

_PROVIDER = "curconvert-template"
# Activations that mobius writes as transformers defines them, with operators that the lowering supports.
_ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "sigmoid", "tanh", "linear")
# Rows of mobius' rotary tables. A few are enough, because the lowering drops the tables.
_TABLE_ROWS = 8


def dense_template(hf_config: Any) -> ir.Model:
    """Return the dense graph of standard operators (opset 24), in float32 and without weights.

    Args:
        hf_config: transformers' config object.

    Returns:
        A model whose weight initializers carry checkpoint names and have no data.

    Raises:
        UnsupportedError: The activation function is not one that both libraries agree on.
    """
    activation = getattr(hf_config, "hidden_activation", None) or hf_config.hidden_act
    if activation not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise UnsupportedError(f"config.json: activation {activation!r} is not supported; supported are {known}")
    # Turn fusions off, because the lowering needs plain Attention, RMSNormalization and Transpose → MatMul.
    register_ep(EpCapabilities(name=_PROVIDER, supports_skip_layer_norm=False), overwrite=True)
    with tempfile.TemporaryDirectory(prefix="curconvert-") as folder:
        Path(folder, "config.json").write_text(json.dumps(_template_config(hf_config)), encoding="utf-8")
        package = mobius.build(folder, load_weights=False, execution_provider=_PROVIDER, dtype=ir.DataType.FLOAT)
    model: ir.Model = package["model"]
    return model


def _template_config(hf_config: Any) -> dict[str, Any]:
    """Return a config with the same topology, without the parts that mobius must ignore."""
    plain: dict[str, Any] = hf_config.to_dict()
    built_as = SUPPORTED_FAMILIES[hf_config.model_type].built_as
    if built_as is not None:  # mobius would keep projections fused, but the lowering needs them split
        plain["model_type"] = built_as
        plain["attention_bias"] = plain["mlp_bias"] = False
    plain["architectures"] = None
    plain["max_position_embeddings"] = _TABLE_ROWS
    if not plain.get("layer_types"):
        # mobius cannot build a uniform window and warns. The dialects apply the window from `ModelFacts`.
        plain["sliding_window"] = None
    for key in ("rope_scaling", "partial_rotary_factor", "original_max_position_embeddings"):
        plain.pop(key, None)
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    nested = any(isinstance(value, Mapping) for value in plain["rope_parameters"].values())
    plain["rope_parameters"] = dict.fromkeys(plain["rope_parameters"], rope) if nested else rope
    return plain
