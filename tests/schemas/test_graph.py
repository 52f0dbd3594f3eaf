"""Graphs: read as the `onnx` package reads them, and nothing but what curconvert writes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto
from onnx.external_data_helper import set_external_data

from curconvert_schemas.graph import MAX_BYTES, OPERATORS, ExternalTensor, GraphContents, read_graph
from support.foreign_graphs import FOREIGN, model, node, numbers
from support.fuzzing import within
from support.wire import Damage, hidden, part, parts, sound_model, varint


def place_of(tensor: TensorProto) -> ExternalTensor:
    keys = {entry.key: entry.value for entry in tensor.external_data}
    return ExternalTensor(tensor.name, keys["location"].removeprefix("./"), int(keys["offset"]), int(keys["length"]))


def messages(message: Any) -> Iterator[Any]:
    """Yield a message and all messages within it, as protobuf's reflection finds them."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if hasattr(value, "extend") else [value]:
                yield from messages(each)


def parsed(data: bytes) -> onnx.ModelProto:
    """Parse a model; where the parser refuses the type of a value, which the reader leaves to it, without types."""
    try:
        return onnx.ModelProto.FromString(data)
    except DecodeError:
        values = (11, 12, 13)
        model = parts(data)
        for at, field in enumerate(model):
            if field.tag == b"\x3a":
                kept = [each for each in parts(field.content) if each.tag[0] >> 3 not in values]
                model[at] = part(7, b"".join(map(b"".join, kept)))
        return onnx.ModelProto.FromString(b"".join(map(b"".join, model)))


def test_the_reader_finds_what_the_onnx_package_finds_or_refuses() -> None:
    """In 20,000 damaged models, accepted ones have the same operators and external data, and nothing hidden."""
    damage, accepted, refused = Damage(seed=7), 0, 0
    for _ in range(20_000):
        data = damage.draw()
        try:
            found = read_graph(data)
        except ValueError:
            refused += 1
            continue
        model = parsed(data)
        accepted += 1
        kinds = [type(each).__name__ for each in messages(model)]
        assert kinds.count("GraphProto") == 1
        assert not {"FunctionProto", "TrainingInfoProto", "SparseTensorProto"} & set(kinds)
        every_tensor = [each for each in messages(model) if isinstance(each, TensorProto)]
        assert found == GraphContents(
            [place_of(tensor) for tensor in every_tensor if tensor.external_data],
            [(each.domain, each.op_type) for each in messages(model) if isinstance(each, onnx.NodeProto)],
        )
        assert set(found.operators) <= OPERATORS
    assert accepted > 1_000
    assert refused > 10_000


@pytest.mark.parametrize("name", FOREIGN)
def test_a_graph_that_curconvert_does_not_write_is_refused(name: str) -> None:
    """Loops, branches, code, other domains, data in odd places, and sizes far beyond the weights."""
    data, words = FOREIGN[name]
    with pytest.raises(ValueError, match=words):
        read_graph(data)


@pytest.mark.parametrize("bits", [32, 33, 61])
@pytest.mark.parametrize("longer", [0, 1])
def test_a_tag_of_more_than_32_bits_is_refused(bits: int, longer: int) -> None:
    """Some parsers drop its upper bits and read a whole second graph, or a function, where others skip a field."""
    assert read_graph(sound_model()).operators
    for number, field in ((number, field) for where, number, field in hidden() if where == "model"):
        tag = varint((number << 3 | 2) + (1 << bits), longer)
        with pytest.raises(ValueError, match=r"out of range|longer than|past its end"):
            read_graph(sound_model() + tag + field.length + field.content)


@pytest.mark.parametrize(("count", "length"), [(6, 3), (7, 4)])
def test_numbers_of_four_bits_take_half_a_byte(count: int, length: int) -> None:
    """An odd one is alone in the last byte; one byte more or less is refused."""
    for wrong in (-1, 0, 1):
        packed = TensorProto(dims=[count], data_type=TensorProto.UINT4, name="x", raw_data=bytes(length))
        set_external_data(packed, "w.bin", offset=0, length=length + wrong)
        packed.ClearField("raw_data")
        if wrong:
            with pytest.raises(ValueError, match="type and shape need"):
                read_graph(model(tensors=(packed,)))
        else:
            assert read_graph(model(tensors=(packed,))).tensors == [ExternalTensor("x", "w.bin", 0, length)]


def test_the_zero_points_of_a_quantized_matrix_fit() -> None:
    """Sizes are compared with the bytes of all weights."""
    rows = TensorProto(name="q", dims=[4, 64], data_type=TensorProto.UINT8, raw_data=bytes(256))
    set_external_data(rows, "w.bin", offset=0, length=256)
    rows.ClearField("raw_data")
    expand = node("Expand", "middle", "shape")
    assert read_graph(model(expand, tensors=(rows, numbers("shape", 4, 2)))).operators == [("", "Expand")]
    with pytest.raises(ValueError, match="larger than all weights"):
        read_graph(model(expand, tensors=(rows, numbers("shape", 4, 65))))


@pytest.mark.slow
def test_reading_the_largest_graph_takes_seconds() -> None:
    """However its bytes are spent; the limits are in bytes, so the time is linear."""
    add, empty = part(1, b"".join(part(4, b"Add"))), part(11, b"")
    for field in (add, empty):
        content = b"".join(field)
        graph = content * ((MAX_BYTES - 64) // len(content))
        with within(5):
            read_graph(b"".join(part(7, graph)))
