"""The wire-format walk against the onnx package, and against bytes that are no graph."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from curconvert_runtime import IntegrityError
from curconvert_runtime.format.onnx_external import ExternalTensor, external_tensors


def external(name: str) -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros((2, 3), np.float32), name)
    set_external_data(tensor, "w.bin", offset=16, length=24)
    tensor.ClearField("raw_data")
    return tensor


def save(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def branch(name: str) -> onnx.GraphProto:
    return helper.make_graph([], name, [], [], [external(name)])


def test_tensors_are_found_wherever_a_graph_can_hold_them(tmp_path: Path) -> None:
    """Initializers, sparse ones, constants, nested subgraphs and functions: none is overlooked."""
    constant = helper.make_node("Constant", [], ["c"], value=external("constant"))
    several = helper.make_node("Custom", [], ["d"])
    several.attribute.append(helper.make_attribute("list", [external("in list")]))
    inner = helper.make_node("If", ["x"], ["y"], then_branch=branch("then"), else_branch=branch("else"))
    middle = helper.make_graph([inner], "middle", [], [])
    outer = helper.make_node("If", ["x"], ["z"], then_branch=middle, else_branch=branch("outer else"))
    graph = helper.make_graph([constant, several, outer], "g", [], [], [external("plain")])
    graph.sparse_initializer.add().values.CopyFrom(external("sparse"))
    function = helper.make_function(
        "d", "f", [], [], [helper.make_node("Constant", [], ["q"], value=external("function"))], []
    )
    model = helper.make_model(graph, functions=[function])
    found = {tensor.name for tensor in external_tensors(save(tmp_path / "g.onnx", model))}
    assert found == {"constant", "in list", "then", "else", "outer else", "plain", "sparse", "function"}


@pytest.mark.parametrize(("count", "length"), [(6, 3), (7, 4)])
def test_numbers_of_four_bits_take_half_a_byte(tmp_path: Path, count: int, length: int) -> None:
    """An odd one is alone in the last byte; one byte more or less is refused."""
    for wrong in (-1, 0, 1):
        packed = TensorProto(dims=[count], data_type=TensorProto.UINT4, name="x", raw_data=bytes(length))
        set_external_data(packed, "w.bin", offset=0, length=length + wrong)
        packed.ClearField("raw_data")
        path = save(tmp_path / "g.onnx", helper.make_model(helper.make_graph([], "g", [], [], [packed])))
        if wrong:
            with pytest.raises(IntegrityError, match="type and shape need"):
                external_tensors(path)
        else:
            assert external_tensors(path) == [ExternalTensor("x", "w.bin", 0, length)]


def test_entries_are_read_as_the_onnx_package_wrote_them(tmp_path: Path) -> None:
    """Location, offset and length come back unchanged, and inline tensors are left out."""
    inline = numpy_helper.from_array(np.zeros(3), "inline")
    model = helper.make_model(helper.make_graph([], "g", [], [], [inline, external("x")]))
    assert external_tensors(save(tmp_path / "g.onnx", model)) == [ExternalTensor("x", "w.bin", 16, 24)]


def test_external_entries_count_even_when_the_tensor_says_inline(tmp_path: Path) -> None:
    """The entries are judged whether or not `data_location` announces them."""
    tensor = external("x")
    tensor.data_location = TensorProto.DEFAULT
    model = helper.make_model(helper.make_graph([], "g", [], [], [tensor]))
    assert len(external_tensors(save(tmp_path / "g.onnx", model))) == 1


def test_precompiled_contexts_are_refused(tmp_path: Path) -> None:
    """EPContext names a binary for an execution provider to load."""
    node = helper.make_node("EPContext", [], ["x"], domain="com.microsoft", ep_cache_context="../x.bin")
    with pytest.raises(IntegrityError, match="EPContext"):
        external_tensors(save(tmp_path / "g.onnx", helper.make_model(helper.make_graph([node], "g", [], []))))


def test_endless_nesting_is_refused(tmp_path: Path) -> None:
    """A bomb of nested subgraphs ends in an error, not in a crash."""
    graph = branch("x")
    for _ in range(15):
        graph = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=graph)], "g", [], [])
    with pytest.raises(IntegrityError, match="nested too deeply"):
        external_tensors(save(tmp_path / "g.onnx", helper.make_model(graph)))


@given(st.binary(max_size=300), st.integers(0, 400))
def test_damaged_graphs_never_escape_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int
) -> None:
    """Random bytes inside a sound graph give tensors or an IntegrityError."""
    model = helper.make_model(helper.make_graph([], "g", [], [], [external("x"), external("y")]))
    data = model.SerializeToString()
    path = tmp_path_factory.getbasetemp() / "fuzz.onnx"
    path.write_bytes(data[:at] + noise + data[at:])
    with contextlib.suppress(IntegrityError):
        external_tensors(path)
