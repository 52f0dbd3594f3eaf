"""Serialized ONNX models that curconvert never writes, and words of what a reader must say about each."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data


def outside(name: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros((2, 3), np.float32), name)
    set_external_data(tensor, "w.bin", offset=16, length=24)
    tensor.ClearField("raw_data")
    return tensor


def model(*nodes: onnx.NodeProto, tensors: tuple[TensorProto, ...] = (), **fields: Any) -> bytes:
    graph = helper.make_graph(list(nodes), "g", [], [], tensors)
    data: bytes = helper.make_model(graph, **fields).SerializeToString()
    return data


def numbers(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def node(op_type: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, list(inputs), ["y"], **attributes)


BODY = helper.make_graph([node("Constant", value=outside("inner"))], "body", [], [], [outside("x")])
HUGE = numpy_helper.from_array(np.zeros(1, np.float32), "value")
SPARSE = onnx.SparseTensorProto(values=outside("sparse"), dims=[2])


def with_sparse() -> bytes:
    found = onnx.ModelProto.FromString(model())
    found.graph.sparse_initializer.append(SPARSE)
    return found.SerializeToString()


def with_training() -> bytes:
    found = onnx.ModelProto.FromString(model())
    found.training_info.add().algorithm.CopyFrom(BODY)
    return found.SerializeToString()


FOREIGN = {
    "Loop": (model(node("Loop", "", "", body=BODY)), "operator 'Loop'"),
    "If": (model(node("If", "x", then_branch=BODY, else_branch=BODY)), "operator 'If'"),
    "Scan": (model(node("Scan", "x", body=BODY, num_scan_inputs=1)), "operator 'Scan'"),
    "subgraph of a known operator": (model(node("Add", "x", "x", body=BODY)), "a subgraph"),
    "subgraphs of a known operator": (model(node("Add", "x", "x", body=[BODY])), "subgraphs"),
    "custom domain": (model(node("Add", "x", domain="evil")), "'Add' of the domain 'evil'"),
    "another spelling of the standard domain": (model(node("Add", "x", domain="ai.onnx")), "domain 'ai.onnx'"),
    "EPContext": (model(node("EPContext", domain="com.microsoft", ep_cache_context="../x")), "'EPContext'"),
    "imported domain": (model(opset_imports=[helper.make_opsetid("evil", 1)]), "uses the domain 'evil'"),
    "local functions": (model(functions=[helper.make_function("evil", "f", [], [], [], [])]), "local functions"),
    "training": (with_training(), "training information"),
    "sparse initializer": (with_sparse(), "sparse tensors"),
    "sparse attribute": (model(node("Add", value=SPARSE)), "field 22"),
    "tensor in an attribute": (model(node("Add", "x", "x", value=outside("c"))), "a tensor in an attribute"),
    "tensors in an attribute": (model(node("Add", "x", "x", value=[outside("c")])), "field 10"),
    "Constant": (model(node("Constant", value=outside("c"))), "operator 'Constant'"),
    "ConstantOfShape of 4 TB": (
        model(node("ConstantOfShape", "shape", value=HUGE), tensors=(numbers("shape", 2**20, 2**20),)),
        "operator 'ConstantOfShape'",
    ),
    "Tile": (model(node("Tile", "x", "n"), tensors=(numbers("n", 2**40),)), "operator 'Tile'"),
    "Expand to 4 TB": (
        model(node("Expand", "x", "n"), tensors=(outside("x"), numbers("n", 2**20, 2**20))), "larger than all weights",
    ),
    "Range of 4 TB": (
        model(node("Range", "0", "n", "1"), tensors=(numbers("n", 2**40), outside("x"))), "larger than all weights",
    ),
    "Range of reals": (model(node("Range", "0", "value", "1"), tensors=(HUGE,)), "larger than all weights"),
    "Pad to 4 TB": (
        model(node("Pad", "x", "n"), tensors=(outside("x"), numbers("n", 0, 2**40))), "larger than all weights",
    ),
    "no graph": (onnx.ModelProto(ir_version=8).SerializeToString(), "holds no graph"),
    "two graphs": (model() + model(), "appears twice"),
    "axes in one field": (model(tensors=(TensorProto(name="x"),)).replace(b"B\x01x", b"\n\x01\x01"), "field 1 of"),
    "more axes than a weight has": (model(tensors=(TensorProto(name="x", data_type=1, dims=[1] * 9),)), "axes"),
    "numbers outside raw data": (model(tensors=(TensorProto(name="x", data_type=1, float_data=[1]),)), "field 4"),
    "text": (model(tensors=(TensorProto(name="x", data_type=8, string_data=[b"x"]),)), "field 6"),
    "fewer numbers than the shape": (model(tensors=(TensorProto(name="x", data_type=1, dims=[2**40]),)), "need"),
    "data location without data": (model(tensors=(TensorProto(name="x", data_type=1, data_location=1),)), "neither"),
}  # fmt: skip
