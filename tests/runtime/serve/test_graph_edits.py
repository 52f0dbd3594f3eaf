"""What is changed in a graph before onnxruntime reads it, and that nothing else is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from curconvert_runtime import CpuOptions, load
from curconvert_runtime.format.quantized import KEEPS_ACTIVATIONS, ROUNDS_ACTIVATIONS
from curconvert_runtime.serve.graph_edits import keeping_activations, with_first_logits
from support.onnx_writer import FLOAT, INT64, Graph, Tensor, Value, node
from support.tiny_artifact import reseal, toy_graph


def test_plain_onnxruntime_loads_the_graph_without_a_warning(sealed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The file has no input with a default; a session has one, and what asks for none gets all logits."""
    plain = onnxruntime.InferenceSession(sealed / "model.fused.onnx", providers=["CPUExecutionProvider"])
    assert capfd.readouterr().err == ""
    assert plain.get_overridable_initializers() == []
    session = load(sealed, graph="fused")
    assert session.trims_logits
    assert not load(sealed, graph="portable").trims_logits
    ids = np.array([[5, 9, 30, 7]])
    every, _ = session.forward(ids)
    for first in (-1, -2, 1, 3):
        found, _ = session.forward(ids, first=first)
        np.testing.assert_allclose(found, every[:, first:], rtol=1e-5, atol=1e-5)


def test_the_first_logits_of_the_portable_graph_are_left_out_as_well(sealed: Path) -> None:
    """It computes them, and gives those that were asked for."""
    session, ids = load(sealed, graph="portable"), np.array([[5, 9, 30, 7]])
    np.testing.assert_array_equal(session.forward(ids, first=-3)[0], session.forward(ids)[0][:, -3:])


def test_a_graph_that_has_the_input_or_nothing_to_choose_stays_as_it_is(sealed: Path, toy: Path) -> None:
    """Older artifacts have the input with its default themselves, and load as before."""
    model = toy_graph(toy / "model.safetensors", "fused")
    model.input.append(Value("first_logits", INT64, [1]))
    older = model.encode()
    assert with_first_logits(older) == older
    portable = (sealed / "model.onnx").read_bytes()
    assert with_first_logits(portable) == portable
    (toy / "model.fused.onnx").write_bytes(older)
    reseal(toy)
    session, ids = load(toy, graph="fused"), np.array([[5, 9, 30, 7]])
    assert session.trims_logits
    np.testing.assert_array_equal(session.forward(ids, first=-1)[0], load(sealed).forward(ids, first=-1)[0])


def quantized(level: int, operator: str = "MatMulNBits") -> bytes:
    """Return a graph of two products, and a tensor that looks like their attribute."""
    attributes = {"K": 32, "N": 2, "bits": 4, "block_size": 32, "accuracy_level": level}
    nodes = [
        node(operator, ["x", "q", "s"], ["y"], "com.microsoft", **attributes),
        node("MatMulNBits", ["x", "q", "s"], ["z"], "com.microsoft", **attributes),
    ]
    spelled = np.frombuffer(b"\x0a\x0eaccuracy_level\x18" + bytes([ROUNDS_ACTIVATIONS]), np.uint8)
    constants = [
        Tensor.of("q", np.arange(32, dtype=np.uint8).reshape(2, 1, 16)),
        Tensor.of("s", np.ones((2, 1), np.float32)),
        Tensor.of("spelled", spelled),
    ]
    outputs = [Value("y", FLOAT, None), Value("z", FLOAT, None)]
    return Graph(nodes, [Value("x", FLOAT, [1, 32])], outputs, constants).encode()


def test_quantized_products_keep_their_activations() -> None:
    """Every product asks for float32 instead of rounding; bytes that only look like it stay."""
    assert keeping_activations(quantized(ROUNDS_ACTIVATIONS)) == quantized(KEEPS_ACTIVATIONS)
    other = keeping_activations(quantized(ROUNDS_ACTIVATIONS, "Other"))
    assert other.count(b"accuracy_level\x18" + bytes([ROUNDS_ACTIVATIONS])) == 2  # the other operator's, and the tensor
    assert keeping_activations(quantized(KEEPS_ACTIVATIONS)) == quantized(KEEPS_ACTIVATIONS)


def test_the_option_reaches_the_graph(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`round_activations=False` edits the bytes that onnxruntime gets; by default they are not looked at."""
    asked: list[bytes] = []
    monkeypatch.setattr(
        "curconvert_runtime.serve.providers.keeping_activations", lambda graph: asked.append(graph) or graph
    )
    load(sealed)
    assert not asked
    load(sealed, options=CpuOptions(round_activations=False))
    assert len(asked) == 1
