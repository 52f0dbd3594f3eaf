"""The fused graph in float16: it computes what transformers computes, and nothing multiplies in float32."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime_genai as genai
import pytest
import torch

from curconvert.graph import build_graphs, genai_config, save_graphs
from support.cases import CASES
from support.families import FAMILIES, MIXED, SPARSE, VOCABULARY, TinyModel, compress, drop_neurons, make_checkpoint
from support.parity import oracle_logits, right_padded_logits, tokens

FUSED = "model.fused.onnx"
KERNELS = ("FusedMatMul", "GroupQueryAttention", "QuickGelu", "RotaryEmbedding", "SkipSimplifiedLayerNormalization")
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
# Relative to the largest logit; float16 has 11 binary digits, a model of two layers a dozen roundings in a row.
TOLERANCE = 1e-2
FORMS = {"mixed": MIXED, "sparse": SPARSE}


def saved(folder: Path, case: str, form: str) -> TinyModel:
    """Return a float16 model whose float16 graph is saved."""
    family, settings = CASES[case]
    model = make_checkpoint(folder / "dense", family, dtype=torch.float16, **settings)
    if form in FORMS:
        model = compress(model, folder / form, forms=FORMS[form])
    if form == "neurons":
        model = drop_neurons(model, folder / form)
    save_graphs(build_graphs(model.config, model.tensors, model.forms, arithmetic="float16"), model.folder)
    return model


@pytest.mark.parametrize(
    ("case", "form"),
    [(family, form) for family in FAMILIES for form in ("dense", "mixed")]
    + [("llama", "neurons"), ("qwen2", "sparse"), ("llama-biases", "dense"), ("llama-gelu", "neurons")]
    + [(case, "dense") for case in CASES if "rope" in case or "longrope" in case],
)
def test_it_computes_what_transformers_computes(case: str, form: str, tmp_path: Path) -> None:
    """Prefill and cached decode of a right-padded batch, with the cache in float16 and logits in float32."""
    model = saved(tmp_path, case, form)
    onnx.checker.check_model(model.folder / FUSED, full_check=True)
    rows = tokens(VOCABULARY)
    expected = oracle_logits(model.oracle, rows)
    found = right_padded_logits(model.folder / FUSED, rows)
    assert {row.dtype for row in found} == {np.dtype(np.float32)}
    scale = max(float(np.abs(row).max()) for row in expected)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True)) / scale
    assert 1e-6 < difference < TOLERANCE  # above: it does round


@pytest.mark.parametrize("family", FAMILIES)
def test_kernels_take_float16_and_normalizations_float32(family: str, tmp_path: Path) -> None:
    """No kernel sees a float32 number, no weight is widened but those of plain normalizations, squares are float32."""
    model = saved(tmp_path, family, "mixed")
    graph = ir.load(model.folder / FUSED).graph
    cache = [value for value in (*graph.inputs, *graph.outputs) if "key" in value.name or "value" in value.name]
    assert {value.dtype for value in cache} == {ir.DataType.FLOAT16}
    assert next(value for value in graph.outputs if value.name == "logits").dtype is ir.DataType.FLOAT
    types = {value: value.dtype for value in (*graph.inputs, *graph.initializers.values()) if value.dtype in FLOATS}
    products = 0
    for node in graph:
        floats = {types[value] for value in node.inputs if value in types}
        if node.op_type == "Cast":
            to = node.attributes["to"].as_int()
            types.update(dict.fromkeys(node.outputs, ir.DataType(to)) if to in FLOATS else {})
            assert not (to == ir.DataType.FLOAT and str(node.inputs[0].name).endswith("proj.weight"))
            continue
        assert len(floats) <= 1, f"{node.op_type} of {floats}"
        if node.op_type in KERNELS:
            assert floats == {ir.DataType.FLOAT16}
            products += node.op_type == "FusedMatMul"
        if node.op_type in ("Pow", "ReduceMean", "Sqrt"):
            assert floats == {ir.DataType.FLOAT}
        types.update(dict.fromkeys(node.outputs, next(iter(floats))) if floats else {})
    assert products >= 7 * model.config["num_hidden_layers"]


def test_the_portable_graph_stays_float32(tmp_path: Path) -> None:
    """It is the same as without."""
    model = make_checkpoint(tmp_path, "llama", dtype=torch.float16)
    plain, half = (
        build_graphs(model.config, model.tensors, {}, arithmetic=arithmetic) for arithmetic in ("float32", "float16")
    )
    assert ir.to_proto(plain.portable) == ir.to_proto(half.portable)
    assert ir.to_proto(plain.fused) != ir.to_proto(half.fused)


def test_genai_is_told_to_use_the_gpu_and_serves_the_graph_on_the_cpu_too(tmp_path: Path) -> None:
    """The settings ask for CUDA; with these cleared, greedy tokens are transformers'."""
    model = saved(tmp_path, "llama", "mixed")
    content = genai_config(model.config, target="cuda")
    session = content["model"]["decoder"]["session_options"]
    assert session["provider_options"] == [{"cuda": {"enable_skip_layer_norm_strict_mode": "1"}}]
    (model.folder / "genai_config.json").write_text(json.dumps(content))
    settings = genai.Config(str(model.folder))
    settings.clear_providers()
    served = genai.Model(settings)
    parameters = genai.GeneratorParams(served)
    prompt = [5, 9, 33, 7]
    parameters.set_search_options(max_length=len(prompt) + 12, do_sample=False)
    generator = genai.Generator(served, parameters)
    generator.append_tokens(np.array([prompt], dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    ids = torch.tensor([prompt])
    expected = model.oracle.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0].tolist()
    assert generator.get_sequence(0).tolist() == [token for token in expected if token != model.config["eos_token_id"]]
