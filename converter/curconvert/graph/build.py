"""Builds both graphs of a model from its config and tensor table, and saves them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common as passes

from curconvert.checkpoint.types import TensorInfo
from curconvert.families.facts import read_facts
from curconvert.families.skeleton import build_skeleton
from curconvert.graph.binding import bind, deployed_dtype
from curconvert.graph.emit import Emitter
from curconvert.graph.fused import Fused
from curconvert.graph.half import to_float16
from curconvert.graph.lm_head import choose_logits, split_head
from curconvert.graph.lowering import Lowering
from curconvert.graph.portable import OPSET_WITH_BLOCKS, Portable
from curconvert.graph.template import dense_template
from curconvert_runtime.format.files import FUSED_FILE, PORTABLE_FILE
from curconvert_runtime.format.quantized import Packing, part_name
from curconvert_schemas.graph import OPERATORS

# The IR version of ONNX 1.12, the first release with opset 17.
_IR_VERSION = 8
# The IR version of ONNX 1.16, the first release with opset 21: 4-bit integers, and DequantizeLinear with blocks.
_IR_VERSION_WITH_BLOCKS = 10


@dataclass(frozen=True)
class Graphs:
    """The two graphs of a model.

    Attributes:
        portable: Standard operators only; left padding allowed.
        fused: onnxruntime's fused operators such as GroupQueryAttention; right padding, lengths from the mask.
    """

    portable: ir.Model
    fused: ir.Model


def build_graphs(
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    forms: Mapping[str, str],
    owners: Mapping[str, str] = MappingProxyType({}),
    quantized: Mapping[str, Packing] = MappingProxyType({}),
    arithmetic: str = "float32",
) -> Graphs:
    """Return both graphs of a model without reading a weight.

    Args:
        config: The Hugging Face config as a plain dict.
        tensors: Every stored tensor by canonical name, with its byte range. `.rows` and `.cols` are ignored. Without
            `lm_head.weight`, the lm_head is tied to the embedding.
        forms: Form of each compressed matrix, by weight name.
        owners: For a matrix with a shared R, the weight name under which R is stored, by weight name.
        quantized: Shape and layout of each quantized matrix, by the name that it would have unquantized.
        arithmetic: Arithmetic of the fused graph: float32, or float16 with float16 weights.

    Returns:
        Graphs with external weights. `location` is only a file name, so save the graphs beside that file.

    Raises:
        InputError: The tensors do not fit the config.
        UnsupportedError: The family, or a form, has no graph.
    """
    parts = {part_name(name, part) for name, packing in quantized.items() for part in packing.parts}
    stored, layouts = deployed_dtype(tensors, parts), {packing.layout for packing in quantized.values()}
    skeleton = build_skeleton(config)
    facts = read_facts(skeleton)
    template = dense_template(skeleton.config)
    graphs = []
    for dialect in (Portable, Fused):
        model = template.clone()
        inputs = {str(value.name): value for value in model.graph.inputs}
        written = dialect(Emitter(model.graph, stored), facts, inputs, layouts)
        Lowering(model, written, facts, tensors, forms, owners, quantized).run()
        bind(model.graph, tensors)
        if dialect is Fused:
            choose_logits(model.graph)
            split_head(model.graph)
            if arithmetic == "float16":
                to_float16(model.graph)
        _finish(model)
        graphs.append(model)
    return Graphs(*graphs)


def _finish(model: ir.Model) -> None:
    """Make node names unique, give axes common names, remove mobius' names, and check the operators."""
    # mobius names a graph after a temporary folder, but the same input must give the same bytes.
    model.graph.name = "model"
    _name_dimensions(model.graph)
    passes.NameFixPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)
    for node in model.graph:
        if (node.domain, node.op_type) not in OPERATORS:
            operator = f"{node.domain}:{node.op_type}"
            raise RuntimeError(
                f"no artifact may hold operator {operator}; add it to curconvert_schemas.graph.OPERATORS"
            )
        for output in node.outputs:
            # ONNX omits an output without a name, such as the statistics of SkipSimplifiedLayerNormalization.
            if not output.uses() and not output.is_graph_output():
                output.name = ""
    model.ir_version = _IR_VERSION if model.graph.opset_imports[""] < OPSET_WITH_BLOCKS else _IR_VERSION_WITH_BLOCKS
    model.producer_name, model.producer_version = "curconvert", None


def _name_dimensions(graph: ir.Graph) -> None:
    """Name the symbolic axes of inputs and outputs as optimum and onnxruntime-genai do."""
    names = {
        "input_ids": ("batch_size", "sequence_length"),
        "attention_mask": ("batch_size", "total_sequence_length"),
        "position_ids": ("batch_size", "sequence_length"),
        "logits": ("batch_size", "sequence_length"),
    }
    for value in (*graph.inputs, *graph.outputs):
        kind = str(value.name).split(".")[0]
        if kind in names:
            value.shape = ir.Shape([*names[kind], *value.shape[2:]])
        else:
            length = "past_sequence_length" if kind == "past_key_values" else "total_sequence_length"
            value.shape = ir.Shape(["batch_size", value.shape[1], length, value.shape[3]])


def save_graphs(graphs: Graphs, folder: Path) -> None:
    """Write `model.onnx` and `model.fused.onnx` into a folder, without reading the weights.

    Args:
        graphs: What `build_graphs` returned.
        folder: The folder that holds the weights' file.
    """
    ir.save(graphs.portable, folder / PORTABLE_FILE)
    ir.save(graphs.fused, folder / FUSED_FILE)
