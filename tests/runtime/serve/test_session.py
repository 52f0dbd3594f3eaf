"""A session computes what the model defines, and refuses requests that are not sound."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import curconvert_runtime
from curconvert_runtime import InputError, IntegrityError, Session, load
from support.onnx_writer import FLOAT, FLOAT16, Graph, node
from support.tiny_artifact import CONTEXT, VOCAB, reseal, toy_graph, toy_logits, toy_tensors

PROMPTS = [[1, 2, 3, 4, 5], [7], [250, 260, 3]]
TENSORS = toy_tensors()
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def expected(ids: list[int]) -> Any:
    return toy_logits(ids, TENSORS)


def test_one_sequence_gives_its_logits(session: Session) -> None:
    """[tokens] in, [tokens, vocabulary] out, as float64 NumPy computes it."""
    logits = session.logits(PROMPTS[0])
    assert isinstance(logits, np.ndarray)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected(PROMPTS[0]), **TOLERANCE)


@pytest.mark.parametrize("name", ["größe 模型".encode(), b"latin-1 \xe9", b"\xff\xfe"])
@pytest.mark.parametrize("graph", ["portable", "fused"])
def test_any_bytes_may_name_the_folder(sealed: Path, tmp_path: Path, name: bytes, graph: Any) -> None:
    """A name need not be UTF-8; onnxruntime finds the weights in the folder."""
    folder = tmp_path / os.fsdecode(name)
    shutil.copytree(sealed, folder)
    np.testing.assert_allclose(load(folder, graph=graph).logits(PROMPTS[0]), expected(PROMPTS[0]), **TOLERANCE)


def test_unequal_sequences_give_a_list(session: Session) -> None:
    """Padding is an inner matter: each row's logits are those of the row alone."""
    logits = session.logits(PROMPTS)
    assert isinstance(logits, list)
    for row, ids in zip(logits, PROMPTS, strict=True):
        np.testing.assert_allclose(row, expected(ids), **TOLERANCE)


def test_a_rectangular_batch_gives_one_array(session: Session) -> None:
    """[batch, tokens] in, [batch, tokens, vocabulary] out."""
    batch = np.array([[1, 2, 3], [4, 5, 6]])
    logits = session.logits(batch)
    assert isinstance(logits, np.ndarray)
    np.testing.assert_allclose(logits[1], expected([4, 5, 6]), **TOLERANCE)


@pytest.mark.parametrize(
    "ids",
    [
        np.array([5, 6, 7], np.int32),
        np.array([5, 6, 7], np.uint8),
        np.array([5, 6, 7], np.uint64),
        np.array([5, 0, 6, 0, 7])[::2],
        np.array([7, 6, 5])[::-1],
        np.asfortranarray([[5, 6, 7]]),
        [[5, 6, 7]],
        (5, 6, 7),
        [np.int16(5), 6, 7],
    ],
)
def test_any_integer_layout_is_accepted(session: Session, ids: Any) -> None:
    """Width, stride and container of the ids make no difference."""
    logits = np.asarray(session.logits(ids)).reshape(3, VOCAB)
    np.testing.assert_allclose(logits, expected([5, 6, 7]), **TOLERANCE)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "empty"),
        ([[]], "empty prompt"),
        (np.zeros((0,), np.int64), "empty prompt"),
        (np.zeros((0, 3), np.int64), "empty batch"),
        (np.zeros((2, 0), np.int64), "empty prompt"),
        ([VOCAB], f"token id {VOCAB}"),
        ([1, -1], "token id -1"),
        ([1, 2**63], "does not fit|expected integers"),
        ([1, 2**70], "expected integers"),
        ([1.0, 2.0], "float64"),
        (np.array([1.0], np.float16), "float16"),
        ([True, False], "bool"),
        (["a"], "expected"),
        ("text", "str"),
        (None, "NoneType"),
        (7, "int"),
        ([[1, 2], 3], "dimensions"),
        ([1, [2, 3]], "differ in length"),
        (np.zeros((1, 1, 1), np.int64), "dimensions"),
        ([1] * (CONTEXT + 1), "context"),
        (np.array([object()]), "expected"),
    ],
)
def test_unsound_ids_are_refused(session: Session, ids: Any, message: str) -> None:
    """Each wrong request has one clear line."""
    with pytest.raises(InputError, match=message) as caught:
        session.logits(ids)
    assert "\n" not in str(caught.value)


def test_the_whole_context_can_be_used(session: Session) -> None:
    """A prompt as long as the context is legal."""
    ids = list(range(CONTEXT))
    np.testing.assert_allclose(session.logits(ids), expected(ids), **TOLERANCE)


@pytest.mark.parametrize("capacity", [None, 8])
def test_decoding_with_a_cache_equals_the_full_pass(session: Session, capacity: int | None) -> None:
    """Token by token, in a growing cache or in one buffer, the logits are those of one pass."""
    ids = [9, 8, 7, 6, 5]
    cache = session.allocate_cache(1, capacity)
    pieces = []
    for token in ids:
        logits, cache = session.forward([[token]], past=cache)
        pieces.append(logits[0, 0])
    np.testing.assert_allclose(pieces, expected(ids), **TOLERANCE)


@pytest.mark.parametrize(("batch", "columns"), [(1, 5), (3, 8)])
def test_a_cache_is_one_block_of_zeros(session: Session, batch: int, columns: int) -> None:
    """Its arrays lie one after the other, and none reaches into another."""
    arrays = session.cache_arrays(batch, columns)
    places = [array.ctypes.data for array in arrays]
    assert all(array.shape[0] == batch and array.shape[2] == columns and not array.any() for array in arrays)
    assert all(array.flags.c_contiguous and array.flags.writeable for array in arrays)
    assert places == [places[0] + number * arrays[0].nbytes for number in range(len(arrays))]


def test_a_batch_decodes_at_each_rows_own_length(session: Session) -> None:
    """After an unequal prefill, a step of the batch gives what each row alone gives."""
    ids, mask = curconvert_runtime.serve.requests.padded([np.array(row) for row in PROMPTS], session.padding)
    _, cache = session.forward(ids, mask)
    mask = np.pad(mask, ((0, 0), (0, 1)))
    for row, prompt in zip(mask, PROMPTS, strict=True):
        row[len(prompt) if session.padding == "right" else -1] = 1
    logits, _ = session.forward([[11], [12], [13]], mask, past=cache)
    for row, prompt, token in zip(logits[:, 0], PROMPTS, (11, 12, 13), strict=True):
        np.testing.assert_allclose(row, expected([*prompt, token])[-1], **TOLERANCE)


def test_given_positions_are_used(session: Session) -> None:
    """Explicit position ids override the derived ones."""
    moved, _ = session.forward([[1, 2]], position_ids=[[1, 0]])
    usual, _ = session.forward([[1, 2]])
    assert np.abs(moved - usual).max() > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": [1, 2]}, "expected \\[batch, tokens\\]"),
        ({"input_ids": [[]]}, "at least one"),
        ({"input_ids": np.zeros((0, 1), np.int64)}, "at least one"),
        ({"input_ids": [[1.5]]}, "float64"),
        ({"input_ids": [[VOCAB]]}, "token id"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, "expected \\[1, 2\\]"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1, 1, 1]]}, "expected \\[1, 2\\]"),
        ({"input_ids": [[1, 2]], "attention_mask": [[0, 0]]}, "attends to nothing"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1, 2]]}, "zeros and ones"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1.0, 1.0]]}, "float64"),
        ({"input_ids": [[1, 2]], "position_ids": [[0]]}, "position_ids"),
        ({"input_ids": [[1, 2]], "position_ids": [[0, CONTEXT]]}, "position_ids"),
        ({"input_ids": [[1, 2]], "position_ids": [[-1, 0]]}, "position_ids"),
        ({"input_ids": [[1] * (CONTEXT + 1)]}, "context"),
    ],
)
def test_unsound_forward_requests_are_refused(session: Session, arguments: dict[str, Any], message: str) -> None:
    """The lower-level call checks its arrays as well."""
    with pytest.raises(InputError, match=message):
        session.forward(**arguments)


def test_a_mask_without_the_past_is_refused(session: Session) -> None:
    """The mask covers past and new tokens."""
    _, cache = session.forward([[1, 2, 3]])
    with pytest.raises(InputError, match="expected \\[1, 4\\]"):
        session.forward([[4]], [[1]], past=cache)


def test_a_past_of_another_batch_is_refused(session: Session) -> None:
    """A cache belongs to its rows."""
    _, cache = session.forward([[1, 2, 3]])
    with pytest.raises(InputError, match="past of 1 rows"):
        session.forward([[4], [5]], past=cache)


def test_left_padding_is_refused_by_the_fused_graph(sealed: Path) -> None:
    """The fused graph would misread a left-padded mask, so it is not asked."""
    with pytest.raises(InputError, match="right padding"):
        load(sealed, graph="fused").forward([[0, 1]], [[0, 1]])


def test_a_full_buffer_is_refused(sealed: Path) -> None:
    """A cache of fixed capacity does not overflow."""
    fused = load(sealed, graph="fused")
    with pytest.raises(InputError, match="allocated for 2"):
        fused.forward([[1, 2, 3]], past=fused.allocate_cache(1, 2))


@pytest.mark.parametrize(("batch", "capacity"), [(0, 4), (1, 0), (1, CONTEXT + 1)])
def test_an_impossible_cache_is_refused(session: Session, batch: int, capacity: int) -> None:
    """A cache needs rows, and columns within the context."""
    with pytest.raises(InputError):
        session.allocate_cache(batch, capacity)


def test_auto_takes_the_fused_graph_where_there_is_one(sealed: Path, toy: Path) -> None:
    """The default is the faster graph, or the only one."""
    assert load(sealed).graph == "fused"
    (toy / "model.fused.onnx").unlink()
    reseal(toy, lambda manifest: manifest["graphs"].pop("fused"))
    assert load(toy).graph == "portable"
    with pytest.raises(InputError, match="no fused graph"):
        load(toy, graph="fused")


@pytest.mark.parametrize(
    "arguments",
    [{"graph": "other"}, {"provider": "tpu"}, {"threads": 0}, {"threads": True}, {"threads": 1.5}],
)
def test_unknown_choices_are_refused(sealed: Path, arguments: dict[str, Any]) -> None:
    """A misspelled provider, graph or thread count is an input error."""
    with pytest.raises(InputError):
        load(sealed, **arguments)


def replace_graph(toy: Path, model: Graph) -> None:
    (toy / "model.onnx").write_bytes(model.encode())
    reseal(toy)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("input_ids", "tokens"),
        ("attention_mask", "mask"),
        ("past_key_values.1.key", "past_key_values.2.key"),
        ("present.0.value", "present.0.v"),
        ("logits", "scores"),
        ("logits", "a\nb"),
    ],
)
def test_renamed_inputs_and_outputs_are_refused(toy: Path, before: str, after: str) -> None:
    """A graph that does not keep the contract is named before it is asked anything."""
    replace_graph(toy, toy_graph(toy / "model.safetensors", "portable", **{before: after}))
    with pytest.raises(IntegrityError, match=r"model\.onnx") as caught:
        load(toy, graph="portable")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 3),
        ("num_hidden_layers", 1),
        ("num_hidden_layers", 10**12),
        ("num_key_value_heads", 2),
        ("head_dim", 16),
        ("vocab_size", 301),
    ],
)
def test_a_graph_of_another_geometry_is_refused(toy: Path, key: str, value: int) -> None:
    """Layers, heads and head size of the graph must be those of the manifest."""
    reseal(toy, lambda manifest: manifest["model"].update({key: value}))
    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        load(toy, graph="portable")


def test_an_axis_name_that_is_no_text_is_refused(toy: Path) -> None:
    """onnxruntime hands such a name over as a decoding error; it comes out as damage to the graph."""
    data = (toy / "model.onnx").read_bytes()
    (toy / "model.onnx").write_bytes(data.replace(b"\x04past", b"\x04p\xff\xfet"))
    reseal(toy)
    with pytest.raises(IntegrityError, match="not UTF-8"):
        load(toy, graph="portable")


def test_a_wrong_cache_dtype_is_refused(toy: Path) -> None:
    """Keys and values are float32."""
    model = toy_graph(toy / "model.safetensors", "portable")
    for entry in model.input:
        if entry.name == "past_key_values.0.key":
            entry.elem_type = FLOAT16
    for each in model.node:
        each.input = ["widened" if name == "past_key_values.0.key" else name for name in each.input]
    model.node.insert(0, node("Cast", ["past_key_values.0.key"], ["widened"], to=FLOAT))
    replace_graph(toy, model)
    with pytest.raises(IntegrityError, match="float16"):
        load(toy, graph="portable")


def test_the_tokenizer_is_read_once(session: Session) -> None:
    """A large tokenizer file is not parsed for every request."""
    assert session.tokenizer is session.tokenizer
    assert session.tokenizer.decode(session.tokenizer.encode("ab")) == "ab"


def test_an_artifact_can_be_moved(sealed: Path, tmp_path: Path) -> None:
    """Nothing in a folder refers to where it was made."""
    moved = Path(shutil.copytree(sealed, tmp_path / "elsewhere"))
    np.testing.assert_allclose(load(moved).logits([3, 4]), expected([3, 4]), **TOLERANCE)
