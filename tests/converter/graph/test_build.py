"""What the two graphs look like: operators, inputs and outputs, size, and nothing but references to weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from curconvert.base.errors import UnsupportedError
from curconvert.checkpoint import open_checkpoint
from curconvert.checkpoint.types import ByteRange, TensorInfo
from curconvert.families.family import SUPPORTED_FAMILIES
from curconvert.graph import Graphs, build_graphs, save_graphs
from support.cases import CASES
from support.families import FAMILIES, MIXED, SPARSE, VOCABULARY, TinyModel, compress, drop_neurons, make_checkpoint
from support.parity import Runner, largest_difference, left_padded_logits, oracle_logits, right_padded_logits, tokens

FILES = ("model.onnx", "model.fused.onnx")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A Llama with matrices of every form, whose graphs are saved."""
    folder = tmp_path_factory.mktemp("llama")
    model = compress(make_checkpoint(folder / "dense", "llama"), folder / "mixed", forms=MIXED)
    save_graphs(build_graphs(model.config, model.tensors, model.forms), model.folder)
    return model


def smollm2() -> tuple[LlamaConfig, dict[str, TensorInfo], dict[str, str]]:
    """Return config, tensor table and forms of a compressed SmolLM2-135M, none of whose bytes exist."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        parameters = dict(AutoModelForCausalLM.from_config(config).named_parameters())
    shapes: dict[str, tuple[int, ...]] = {}
    forms: dict[str, str] = {}
    for name, parameter in parameters.items():
        rows, *columns = parameter.shape
        if name.split(".")[-2] in ("q_proj", "k_proj", "gate_proj"):
            stem = name.removesuffix("weight")
            shapes |= {f"{stem}C": (rows, 128), f"{stem}U": (128, 128), f"{stem}R": (128, *columns)}
            forms[name] = "cur"
        else:
            shapes[name] = tuple(parameter.shape)
    tensors, offset = {}, 8
    for name, shape in shapes.items():
        length = 4 * int(np.prod(shape))
        tensors[name] = TensorInfo(name, "F32", shape, ByteRange(Path("model.safetensors"), offset, length))
        offset += length
    return config, tensors, forms


def test_every_supported_family_is_in_the_parity_suite() -> None:
    """A family is supported when the parity suite passes for it."""
    assert set(FAMILIES) == set(SUPPORTED_FAMILIES)


def test_graphs_of_a_thirty_layer_model_are_small(tmp_path: Path) -> None:
    """Both graphs of a compressed SmolLM2-135M together take less than 1 MB."""
    config, tensors, forms = smollm2()
    save_graphs(build_graphs(config.to_dict(), tensors, forms), tmp_path)
    assert sum((tmp_path / name).stat().st_size for name in FILES) < 1_000_000


def test_saving_writes_the_graphs_and_nothing_else(llama: TinyModel, tmp_path: Path) -> None:
    """No external data file appears: the weights stay where they are."""
    save_graphs(build_graphs(llama.config, llama.tensors, llama.forms), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("forms", [MIXED, SPARSE])
def test_both_graphs_pass_the_full_check(
    family: str, dtype: torch.dtype, forms: tuple[str, ...], tmp_path: Path
) -> None:
    """onnx.checker, shape inference included, accepts every family in every stored dtype and form."""
    model = compress(make_checkpoint(tmp_path / "dense", family, dtype=dtype), tmp_path / "factored", forms=forms)
    save_graphs(build_graphs(model.config, model.tensors, model.forms), model.folder)
    for name in FILES:
        onnx.checker.check_model(model.folder / name, full_check=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", ["llama", "gemma2", "phi3", "llama-biases", "llama-gelu", "gemma3-exact-gelu"])
def test_graphs_with_smaller_mlps_pass_the_full_check(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """No value of the graph still claims the width of all neurons."""
    family, settings = CASES[case]
    dense = make_checkpoint(tmp_path / "dense", family, dtype=dtype, intermediate_size=44, **settings)
    model = drop_neurons(dense, tmp_path / "neurons")
    save_graphs(build_graphs(model.config, model.tensors, model.forms), model.folder)
    for name in FILES:
        onnx.checker.check_model(model.folder / name, full_check=True)
        proto = onnx.load(model.folder / name, load_external_data=False)
        values = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph.value_info
        assert all(axis.dim_value != 44 for value in values for axis in value.type.tensor_type.shape.dim)
        assert any(
            axis.dim_value == 20 for value in proto.graph.value_info for axis in value.type.tensor_type.shape.dim
        )


def test_the_portable_graph_has_standard_operators_only(llama: TinyModel) -> None:
    """Every node is of ONNX's own domain, at opset 17."""
    proto = onnx.load(llama.folder / "model.onnx", load_external_data=False)
    assert {node.domain for node in proto.graph.node} == {""}
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 17)]
    assert proto.ir_version <= 8


def test_the_fused_graph_uses_the_fused_operators(llama: TinyModel) -> None:
    """Attention, rotary embedding, norms and SiLU are onnxruntime's; no attention bias is passed."""
    proto = onnx.load(llama.folder / "model.fused.onnx", load_external_data=False)
    fused = [node for node in proto.graph.node if node.domain == "com.microsoft"]
    counts = {name: sum(node.op_type == name for node in fused) for name in {node.op_type for node in fused}}
    assert counts["GroupQueryAttention"] == 2
    assert counts["RotaryEmbedding"] == 4
    assert counts["SkipSimplifiedLayerNormalization"] == 5
    assert counts["QuickGelu"] == 2
    assert all(len(node.input) == 7 for node in fused if node.op_type == "GroupQueryAttention")


@pytest.mark.parametrize("name", FILES)
def test_every_large_initializer_is_external(llama: TinyModel, name: str) -> None:
    """What is stored inside a graph is below 1 KiB; every weight is a byte range of model.safetensors."""
    proto = onnx.load(llama.folder / name, load_external_data=False)
    inline = [tensor for tensor in proto.graph.initializer if not tensor.external_data]
    external = [tensor for tensor in proto.graph.initializer if tensor.external_data]
    assert all(tensor.ByteSize() < 1024 for tensor in inline)
    stored = {name for name in llama.tensors if not name.endswith((".rows", ".cols"))}
    assert "model.layers.0.mlp.gate_proj.order" in stored
    assert {tensor.name for tensor in external} == stored
    for tensor in external:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = llama.tensors[tensor.name].location
        assert location is not None
        assert entries == {
            "location": "model.safetensors",
            "offset": str(location.offset),
            "length": str(location.length),
        }


@pytest.mark.parametrize("name", FILES)
def test_inputs_and_outputs_are_those_that_clients_expect(llama: TinyModel, name: str) -> None:
    """Names, order, types and symbolic axes of inputs and outputs; none has a default, of which onnxruntime warns."""
    graph = ir.load(llama.folder / name).graph
    cache = [f"{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    assert not any(value.is_initializer() for value in graph.inputs)
    assert [value.name for value in graph.inputs] == [
        "input_ids",
        "attention_mask",
        "position_ids",
        *(f"past_key_values.{slot}" for slot in cache),
    ]
    assert [value.name for value in graph.outputs] == ["logits", *(f"present.{slot}" for slot in cache)]
    shapes = {value.name: [str(axis) for axis in value.shape] for value in (*graph.inputs, *graph.outputs)}
    assert shapes["attention_mask"] == ["batch_size", "total_sequence_length"]
    assert shapes["past_key_values.0.key"] == ["batch_size", "2", "past_sequence_length", "8"]
    assert shapes["present.1.value"] == ["batch_size", "2", "total_sequence_length", "8"]
    assert shapes["logits"] == ["batch_size", "sequence_length", str(VOCABULARY)]


def test_a_tied_head_reads_the_embedding(tmp_path: Path) -> None:
    """Without a stored lm_head.weight, the head multiplies by the embedding's initializer."""
    model = make_checkpoint(tmp_path, "llama", tie_word_embeddings=True)
    for graph in _both(build_graphs(model.config, model.tensors, {})):
        assert "lm_head.weight" not in graph.initializers
        consumers = {use.node.op_type for use in graph.initializers["model.embed_tokens.weight"].uses()}
        assert consumers in ({"Gather", "Gemm"}, {"Gather", "FusedMatMul"})


@pytest.mark.parametrize("forms", [MIXED, SPARSE], ids=["mixed", "sparse"])
def test_no_order_is_made_before_what_it_puts_in_order(forms: tuple[str, ...], tmp_path: Path) -> None:
    """Its shape comes from there; from the request, the orders of all layers would be kept from the start."""
    model = compress(make_checkpoint(tmp_path / "dense", "llama"), tmp_path / "smaller", forms=forms)
    for graph in _both(build_graphs(model.config, model.tensors, model.forms)):
        ordered = [node for node in graph if node.op_type == "GatherElements"]
        assert ordered
        for node in ordered:
            value = node.inputs[1]
            while value.producer().op_type != "Shape":
                # Expand(order, shape), Concat(shape, 1)
                value = value.producer().inputs[1 if value.producer().op_type == "Expand" else 0]
            assert value.producer().inputs[0] is node.inputs[0]


def test_phi3_projections_are_row_slices_of_the_stored_tensor(tmp_path: Path) -> None:
    """q, k and v of Phi-3 are read in place from the fused qkv_proj."""
    model = make_checkpoint(tmp_path, "phi3")
    for graph in _both(build_graphs(model.config, model.tensors, {})):
        names = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
        tensors = [graph.initializers[name].const_value for name in names]
        assert [tensor.offset - tensors[0].offset for tensor in tensors] == [0, 32 * 32 * 4, 48 * 32 * 4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_16_bit_weights_are_computed_with_in_float32(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Both graphs answer as torch does in float32 with the same weights."""
    model = compress(make_checkpoint(tmp_path / "dense", family, dtype=dtype), tmp_path / "mixed", forms=MIXED)
    save_graphs(build_graphs(model.config, model.tensors, model.forms), model.folder)
    rows = tokens(VOCABULARY)
    expected = oracle_logits(model.oracle, rows)
    for run, name in ((left_padded_logits, FILES[0]), (right_padded_logits, FILES[1])):
        assert largest_difference(run(model.folder / name, rows), expected) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_for_storage(dtype: torch.dtype, tmp_path: Path) -> None:
    """Each weight becomes float32 by one Cast; of an untied embedding, only the rows looked up do.

    Cache and logits are float32.
    """
    model = make_checkpoint(tmp_path, "llama", dtype=dtype)
    for graph in _both(build_graphs(model.config, model.tensors, {})):
        assert graph.initializers["lm_head.weight"].dtype.itemsize == 2
        for name in model.tensors:
            (use,) = graph.initializers[name].uses()
            assert use.node.op_type == ("Gather" if name == "model.embed_tokens.weight" else "Cast")
        cache = [value for value in graph.inputs if str(value.name).startswith("past_key_values")]
        assert {value.dtype for value in (*cache, *graph.outputs)} == {ir.DataType.FLOAT}


def test_the_residual_stream_of_a_float16_graph_does_not_overflow(tmp_path: Path) -> None:
    """Sums beyond float16's range stay finite and right, because the stream itself is float32."""
    model = make_checkpoint(tmp_path, "granite", dtype=torch.float16, residual_multiplier=1e4, num_hidden_layers=16)
    save_graphs(build_graphs(model.config, model.tensors, {}), tmp_path)
    rows = tokens(VOCABULARY)
    stream = model.oracle(torch.tensor(rows[0][None]), output_hidden_states=True).hidden_states[-2]
    assert stream.abs().max() > np.finfo(np.float16).max
    expected = oracle_logits(model.oracle, rows)
    for run, name in ((left_padded_logits, FILES[0]), (right_padded_logits, FILES[1])):
        for found, row in zip(run(model.folder / name, rows), expected, strict=True):
            np.testing.assert_allclose(found, row, atol=2e-2 * np.abs(row).max())


def test_long_contexts_do_not_enlarge_the_graph(tmp_path: Path) -> None:
    """Rotary tables are computed for the tokens at hand, so a 128 times longer context costs no byte."""
    sizes = []
    for name, length in (("short", 1024), ("long", 131072)):
        model = make_checkpoint(tmp_path / name, "llama", max_position_embeddings=length)
        save_graphs(build_graphs(model.config, model.tensors, {}), model.folder)
        sizes.append(sum((model.folder / file).stat().st_size for file in FILES))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("case", CASES)
def test_the_normalized_config_gives_the_same_graphs(case: str, tmp_path: Path) -> None:
    """The config that a checkpoint presents, both dialects of keys in it, means what the stored one means."""
    family, settings = CASES[case]
    model = make_checkpoint(tmp_path / "dense", family, **settings)
    opened = open_checkpoint(model.folder)
    graphs = []
    for name, config, tensors in (("stored", model.config, model.tensors), ("read", opened.config, opened.tensors)):
        folder = tmp_path / name
        folder.mkdir()
        save_graphs(build_graphs(config, tensors, {}), folder)
        graphs.append([(folder / file).read_bytes() for file in FILES])
    assert graphs[0] == graphs[1]


def test_a_prompt_in_two_pieces_gives_the_same_logits(tmp_path: Path) -> None:
    """Several new tokens on top of a cache: both graphs continue where they stopped, windows included."""
    model = make_checkpoint(tmp_path, "mistral", sliding_window=6)
    save_graphs(build_graphs(model.config, model.tensors, {}), model.folder)
    ids = tokens(VOCABULARY, lengths=(14,), steps=0)[0][None]
    positions, mask = np.arange(14)[None], np.ones((1, 14))
    for name in FILES:
        runner = Runner(model.folder / name)
        runner.reset(1)
        whole = runner.step(ids, mask, positions)
        runner.reset(1)
        pieces = [
            runner.step(ids[:, start:stop], mask[:, :stop], positions[:, start:stop])
            for start, stop in ((0, 5), (5, 14))
        ]
        np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=1e-4)


def test_a_factored_head_is_not_taken_for_a_tied_one(tmp_path: Path) -> None:
    """A head that is stored as factors has no lm_head.weight either."""
    model = compress(make_checkpoint(tmp_path / "dense", "llama"), tmp_path / "cur", targets=("lm_head",))
    for graph in _both(build_graphs(model.config, model.tensors, model.forms)):
        assert {"lm_head.C", "lm_head.U", "lm_head.R"} < set(graph.initializers)


def test_building_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    """Nothing of the time, the folder or the process gets into a graph."""
    model = make_checkpoint(tmp_path / "model", "gemma2")
    contents = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        save_graphs(build_graphs(model.config, model.tensors, {}), tmp_path / name)
        contents.append([(tmp_path / name / file).read_bytes() for file in FILES])
    assert contents[0] == contents[1]
    assert all(str(tmp_path).encode() not in content for content in contents[0])


def test_an_unknown_activation_is_refused(tmp_path: Path) -> None:
    """mobius takes some activations for others; those are named instead of computed wrongly."""
    model = make_checkpoint(tmp_path, "llama", hidden_act="mish")
    with pytest.raises(UnsupportedError, match="activation 'mish' is not supported"):
        build_graphs(model.config, model.tensors, {})


def _both(graphs: Graphs) -> tuple[ir.Graph, ir.Graph]:
    return graphs.portable.graph, graphs.fused.graph
