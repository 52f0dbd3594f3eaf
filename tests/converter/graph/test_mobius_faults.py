"""Where mobius 0.1 differs from transformers, and the graphs do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from curconvert.families.facts import ModelFacts, read_facts
from curconvert.families.skeleton import build_skeleton
from curconvert.graph import build_graphs
from support.families import TinyModel, make_checkpoint, tiny_config


def facts_of(family: str, **settings: Any) -> ModelFacts:
    """Return the facts of a tiny config."""
    return read_facts(build_skeleton(tiny_config(family, **settings).to_dict()))


def attention_attributes(model: TinyModel, name: str) -> list[Any]:
    """Return an attribute of every GroupQueryAttention node, in layer order."""
    graph = build_graphs(model.config, model.tensors, model.forms).fused.graph
    return [
        node.attributes[name].value if name in node.attributes else None
        for node in graph
        if node.op_type == "GroupQueryAttention"
    ]


def test_gemma3_scales_attention_by_query_pre_attn_scalar(tmp_path: Path) -> None:
    """mobius scales Gemma 3's attention by head_dim^-½ and ignores query_pre_attn_scalar: off by 0.5 in the logits."""
    model = make_checkpoint(tmp_path, "gemma3_text", query_pre_attn_scalar=12, head_dim=8)
    assert attention_attributes(model, "scale") == pytest.approx([12**-0.5] * 2)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_the_embedding_scale_is_not_rounded(family: str, tmp_path: Path) -> None:
    """mobius rounds √hidden_size to two decimals (Gemma 2) or to bfloat16 (Gemma 3), whatever the dtype is."""
    model = make_checkpoint(tmp_path, family)
    graph = build_graphs(model.config, model.tensors, {}).portable.graph
    gathered = next(use.node for use in graph.initializers["model.embed_tokens.weight"].uses()).outputs[0]
    scale = next(use.node for use in gathered.uses()).inputs[1]
    assert scale.const_value.numpy() == np.float32(32**0.5)


def test_gemma3_layers_turn_at_their_own_base() -> None:
    """Local layers rotate by the local base, global layers by the global one."""
    rope = {
        "full_attention": {"rope_type": "default", "rope_theta": 1000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
    }
    facts = facts_of("gemma3_text", rope_parameters=rope)
    assert [layer.rope for layer in facts.layers] == ["sliding_attention", "full_attention"]
    exponents = np.arange(4) / 4
    np.testing.assert_allclose(facts.ropes["sliding_attention"].inv_freq, 10.0**-exponents, rtol=1e-6)
    np.testing.assert_allclose(facts.ropes["full_attention"].inv_freq, 1000.0**-exponents, rtol=1e-6)


def test_mistral_keeps_its_window(tmp_path: Path) -> None:
    """mobius drops a uniform sliding window from graphs without GroupQueryAttention."""
    model = make_checkpoint(tmp_path, "mistral", sliding_window=6)
    assert attention_attributes(model, "local_window_size") == [6, 6]
    graph = build_graphs(model.config, model.tensors, {}).portable.graph
    assert sum(node.op_type == "Less" for node in graph) == 1


def test_windows_hold_for_the_layers_that_transformers_masks() -> None:
    """A window is per layer type, per config, or (Llama with a stray key) not there at all."""
    assert [layer.window for layer in facts_of("gemma2").layers] == [6, None]
    assert [layer.window for layer in facts_of("phi3").layers] == [6, 6]
    assert [layer.window for layer in facts_of("llama", sliding_window=6).layers] == [None, None]
    assert [layer.window for layer in facts_of("qwen2", sliding_window=6).layers] == [None, None]


def test_mlp_biases_are_added(tmp_path: Path) -> None:
    """mobius ignores `mlp_bias`; the stored biases must all be in the graph."""
    model = make_checkpoint(tmp_path, "llama", mlp_bias=True)
    graphs = build_graphs(model.config, model.tensors, {})
    for graph in (graphs.portable.graph, graphs.fused.graph):
        biases = [value for name, value in graph.initializers.items() if name.endswith(".bias")]
        assert len(biases) == 6
        assert all(isinstance(value.const_value, ir.ExternalTensor) for value in biases)


def test_layers_without_positions_stay_without() -> None:
    """SmolLM3's NoPE layers have no rotary embedding."""
    assert [layer.rope for layer in facts_of("smollm3", no_rope_layers=[1, 0]).layers] == ["", None]
