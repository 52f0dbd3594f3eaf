"""Edits of encoded messages: the `onnx` package reads the expected graph, and all other bytes stay."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from curconvert_schemas.onnx_locations import with_data_under
from curconvert_schemas.protobuf_edits import edited, field


def graph_with(*locations: str, name: str = "w") -> onnx.ModelProto:
    """Return a graph with one external initializer for each location, a float attribute and inner data."""
    outside = []
    for number, location in enumerate(locations):
        tensor = TensorProto(name=f"{name}{number}", data_type=1, dims=[2, 3], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", location), ("offset", "8"), ("length", "24")):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
        outside.append(tensor)
    inside = helper.make_tensor("location", TensorProto.DOUBLE, [2], [0.5, -1.0])
    node = helper.make_node("Elu", ["x"], ["y"], alpha=0.25, name="location")
    x, y = (helper.make_tensor_value_info(name, 1, ["n"]) for name in "xy")
    return helper.make_model(helper.make_graph([node], "g", [x], [y], [*outside, inside]))


@pytest.mark.parametrize("locations", [(), ("model.safetensors",), ("a", "./b", "c" * 300)])
@pytest.mark.parametrize("folder", ["snapshots/0123", "f" * 200])
def test_only_locations_change(locations: tuple[str, ...], folder: str) -> None:
    """Lengths of one and of several bytes, and graphs without external data."""
    model, expected = graph_with(*locations), graph_with(*(f"{folder}/{location}" for location in locations))
    assert onnx.load_from_string(with_data_under(model.SerializeToString(), folder)) == expected


def test_a_graph_in_two_pieces_keeps_both() -> None:
    """protobuf joins a graph that is stored in two fields; both are edited."""
    model = graph_with("a")
    more = field(7, onnx.GraphProto(initializer=graph_with("b", name="v").graph.initializer[:1]).SerializeToString())
    found = onnx.load_from_string(with_data_under(model.SerializeToString() + more, "in"))
    places = [entry.value for tensor in found.graph.initializer for entry in tensor.external_data[:1]]
    assert places == ["in/a", "in/b"]


def test_fields_on_no_path_are_copied_byte_for_byte() -> None:
    """Numbers of four and eight bytes among them."""
    data = graph_with("a").SerializeToString()
    assert edited(memoryview(data), (7, 5, 99), lambda _: b"never") == data
    assert edited(memoryview(data), (7, 5, 13), bytes) == data
