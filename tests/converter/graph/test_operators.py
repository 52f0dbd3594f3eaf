"""The list of operators that an artifact's graphs may have is that of the graphs which are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch

from curconvert.checkpoint.types import TensorInfo
from curconvert.graph import build_graphs
from curconvert.graph.emit import Emitter
from curconvert.graph.template import _ACTIVATIONS
from curconvert.options.targets import LINEARS
from curconvert_runtime.format.quantized import Layout, Packing, part_name
from curconvert_runtime.serve.graph_edits import keeping_activations, with_first_logits
from curconvert_schemas.graph import OPERATORS, read_graph
from support.cases import CASES
from support.families import _FACTORIZE, FAMILIES, TinyModel, compress, drop_neurons, make_checkpoint

ROPES = ("llama-rope-dynamic", "phi3-longrope")


def quantized(model: TinyModel, layout: Layout) -> dict[str, Any]:
    """Return what `build_graphs` takes for a model of whose every matrix there are only integers and scales."""
    tensors: dict[str, TensorInfo] = {}
    packed: dict[str, Packing] = {}
    for name, info in model.tensors.items():
        if len(info.shape) != 2:
            tensors[name] = info
            continue
        packed[name] = Packing((info.shape[0], info.shape[1]), layout)
        for suffix, (dtype, shape) in packed[name].parts.items():
            part = part_name(name, suffix)
            length = torch.Size(shape).numel() * (1 if dtype == "U8" else 4)
            tensors[part] = TensorInfo(part, dtype, shape, replace(info.location, length=length))
    return {"tensors": tensors, "quantized": packed}


def every_graph(folder: Path) -> Iterator[bytes]:
    """Yield a graph of each kind: family, activation, form, type, quantization, provider."""

    def graphs(model: TinyModel, **changed: Any) -> Iterator[bytes]:
        built = build_graphs(model.config, **{"tensors": model.tensors, "forms": model.forms, **changed})
        yield from (ir.to_proto(graph).SerializeToString() for graph in (built.portable, built.fused))

    def made(name: str, family: str, **settings: Any) -> TinyModel:
        return make_checkpoint(folder / name, family, num_hidden_layers=2, **settings)

    for case in (*FAMILIES, *ROPES):
        family, settings = CASES[case]
        yield from graphs(made(case, family, **settings))
    for activation in _ACTIVATIONS:
        yield from graphs(made(activation, "llama", hidden_act=activation))
    half = compress(
        made("half", "llama", dtype=torch.float16), folder / "forms", targets=LINEARS, rank=12, forms=tuple(_FACTORIZE)
    )
    yield from graphs(half)
    yield from graphs(half, arithmetic="float16")
    yield from graphs(drop_neurons(made("all", "llama"), folder / "neurons"))
    mixed = compress(made("plain", "gemma2", hidden_size=40), folder / "mixed", forms=tuple(_FACTORIZE))
    for bits, symmetric in ((4, True), (4, False), (7, True), (8, True), (8, False)):
        yield from graphs(mixed, **quantized(mixed, Layout(bits, 32, symmetric)))


def test_the_list_is_what_all_graphs_use(tmp_path: Path) -> None:
    """Each graph is read without a refusal; what onnxruntime gets has the same operators; each listed one is in one."""
    found: set[tuple[str, str]] = set()
    for data in every_graph(tmp_path):
        contents = read_graph(data)
        loaded = onnx.ModelProto.FromString(keeping_activations(with_first_logits(data)))
        assert contents.operators == [(node.domain, node.op_type) for node in loaded.graph.node]
        found.update(contents.operators)
    assert found == OPERATORS


def test_a_graph_with_another_operator_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An emitter that needs a further operator fails at once and says where to add it."""
    model = make_checkpoint(tmp_path / "model", "llama")
    plain: Callable[..., Any] = Emitter.__call__

    def call(emit: Emitter, op_type: str, *inputs: Any, **options: Any) -> Any:
        return plain(emit, "Swish" if op_type == "QuickGelu" else op_type, *inputs, **options)

    monkeypatch.setattr(Emitter, "__call__", call)
    with pytest.raises(RuntimeError, match=r"com\.microsoft.*Swish.*OPERATORS"):
        build_graphs(model.config, model.tensors, {})
