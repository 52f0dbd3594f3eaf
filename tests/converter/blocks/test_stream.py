"""Block streaming against transformers' whole model, for every family."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from curconvert.blocks.cache import cache_argument
from curconvert.blocks.linears import factored_linear
from curconvert.blocks.linears.cur import CURLinear
from curconvert.blocks.stream import BlockStream
from curconvert.checkpoint import open_checkpoint
from curconvert.families.split import SplitLinear
from support.families import FAMILIES, TinyModel, make_checkpoint

IDS = torch.randint(0, 97, (3, 19), generator=torch.Generator().manual_seed(0))  # longer than every sliding window


def open_stream(model: TinyModel, deployed: torch.dtype | None = None) -> BlockStream:
    return BlockStream(open_checkpoint(model.folder), deployed)


def streamed(stream: BlockStream, ids: torch.Tensor) -> torch.Tensor:
    hidden = stream.embed(ids)
    for index in range(stream.num_layers):
        with stream.block(index) as block:
            hidden = block.forward(hidden)
    return stream.logits(hidden)


def whole(model: TinyModel, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model.oracle(input_ids=ids).logits
    return logits


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_logits_are_those_of_the_whole_model(tiny: Callable[[str], TinyModel], family: str) -> None:
    """Scalings, soft caps, windows and fused projections included."""
    model = tiny(family)
    assert_close(streamed(open_stream(model), IDS), whole(model, IDS))


@pytest.mark.parametrize(
    "settings",
    [
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": True},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
        {
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
            }
        },
    ],
    ids=["biases", "tied", "linear rope", "llama 3 rope"],
)  # fmt: skip
def test_config_variants_stream_alike(tmp_path: Path, settings: dict[str, object]) -> None:
    """What a config can change within a family."""
    model = make_checkpoint(tmp_path / "model", "llama", **settings)
    assert_close(streamed(open_stream(model), IDS), whole(model, IDS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_deployed_dtype_rounds_every_weight(tmp_path: Path, dtype: torch.dtype) -> None:
    """The stream computes in float32 with the weights that the artifact will store."""
    model = make_checkpoint(tmp_path / "model", "qwen2")
    found = streamed(open_stream(model, dtype), IDS)
    with torch.no_grad():
        for parameter in model.oracle.parameters():  # and no buffer: rotary frequencies are not stored
            parameter.copy_(parameter.to(dtype))
    assert_close(found, whole(model, IDS))


def test_hidden_states_and_keys_are_those_of_the_whole_model(tiny: Callable[[str], TinyModel]) -> None:
    """Between blocks, and in the cache after the rotary embedding."""
    model = tiny("qwen3")
    with torch.inference_mode():
        known = DynamicCache()
        filled = {cache_argument(model.oracle): known}
        expected = model.oracle(input_ids=IDS, output_hidden_states=True, use_cache=True, **filled)
    stream, cache = open_stream(model), DynamicCache()
    hidden = stream.embed(IDS)
    assert_close(hidden, expected.hidden_states[0])
    for index in range(stream.num_layers):
        with stream.block(index) as block:
            hidden = block.forward(hidden, cache)
        if index + 1 < stream.num_layers:  # the last entry of transformers' list is behind the final norm
            assert_close(hidden, expected.hidden_states[index + 1])
        assert_close(cache.layers[index].keys, known.layers[index].keys)


def test_each_batch_shape_has_its_own_masks(tiny: Callable[[str], TinyModel]) -> None:
    """Sequences of another length pass through the same blocks."""
    model, short = tiny("gemma2"), IDS[:1, :5]
    stream = open_stream(model)
    long_states, short_states = stream.embed(IDS), stream.embed(short)
    for index in range(stream.num_layers):
        with stream.block(index) as block:
            long_states, short_states = block.forward(long_states), block.forward(short_states)
    assert_close(stream.logits(long_states), whole(model, IDS))
    assert_close(stream.logits(short_states), whole(model, short))


def materialized(stream: BlockStream) -> set[int]:
    """Layers with any parameter that is not on the meta device."""
    return {
        index
        for index, layer in enumerate(stream._layers)
        if any(not parameter.is_meta for parameter in layer.parameters())
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_one_block_at_a_time_is_in_memory(tiny: Callable[[str], TinyModel], family: str) -> None:
    """All of its parameters are real inside the context, none of any layer outside."""
    stream = open_stream(tiny(family))
    hidden = stream.embed(IDS)
    assert materialized(stream) == set()
    for index in range(stream.num_layers):
        with stream.block(index) as block:
            assert materialized(stream) == {index}
            assert not any(parameter.is_meta for parameter in block.layer.parameters())
            hidden = block.forward(hidden)
        assert materialized(stream) == set()


def test_a_failure_inside_a_block_releases_it(tiny: Callable[[str], TinyModel]) -> None:
    """The next block finds room."""
    stream = open_stream(tiny("llama"))
    with pytest.raises(ValueError, match="stop"), stream.block(0):
        raise ValueError("stop")
    assert materialized(stream) == set()


LINEARS = ("gate_proj", "up_proj", "down_proj", "q_proj", "k_proj", "v_proj", "o_proj")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_block_names_seven_linears(tiny: Callable[[str], TinyModel], family: str) -> None:
    """Canonical names, fused projections by their parts, with the checkpoint's shapes."""
    model = tiny(family)
    checkpoint = open_checkpoint(model.folder)
    with BlockStream(checkpoint).block(1) as block:
        assert {name.split(".")[-2] for name in block.linears} == set(LINEARS)
        for name, linear in block.linears.items():
            assert isinstance(linear, nn.Linear)
            assert torch.equal(linear.weight, checkpoint.read(name))


@pytest.mark.parametrize("family", ["llama", "phi3", "qwen2"])
def test_a_replaced_linear_is_used_and_put_back(tiny: Callable[[str], TinyModel], family: str) -> None:
    """Inside the context the factors answer; the next visit finds the original."""
    stream = open_stream(tiny(family))
    hidden = stream.embed(IDS)
    name = "model.layers.0.self_attn.k_proj.weight"
    with stream.block(0) as block:
        linear = block.linears[name]
        assert isinstance(linear, nn.Linear)
        original = block.forward(hidden)
        rows = linear.weight.shape[0]
        eye, zero = torch.eye(rows), torch.zeros(rows, rows)
        block.replace(name, CURLinear({"C": eye, "U": eye, "R": linear.weight.clone()}, linear.bias))
        assert_close(block.forward(hidden), original)
        block.replace(name, CURLinear({"C": eye, "U": zero, "R": linear.weight.clone()}, linear.bias))
        assert not torch.allclose(block.forward(hidden), original, atol=1e-3)
    with stream.block(0) as block:
        assert block.linears[name] is linear
        assert torch.equal(block.forward(hidden), original)
    assert materialized(stream) == set()


def test_factors_multiply_from_the_right() -> None:
    """y = C(U(R x)) + b."""
    generator = torch.Generator().manual_seed(0)
    c, u, r, b, x = (torch.randn(s, generator=generator) for s in ((7, 3), (3, 3), (3, 5), (7,), (2, 4, 5)))
    torch.testing.assert_close(CURLinear({"C": c, "U": u, "R": r}, b)(x), x @ (c @ u @ r).T + b)
    torch.testing.assert_close(CURLinear({"C": c, "U": u, "R": r})(x), x @ (c @ u @ r).T)


@pytest.mark.parametrize("biased", [True, False])
def test_interpolated_outputs_are_put_in_order(biased: bool) -> None:
    """Rows 4 and 1 are R's, the others combinations of them, each where `order` says."""
    generator = torch.Generator().manual_seed(0)
    r, t, b, x = (torch.randn(s, generator=generator) for s in ((2, 5), (3, 2), (5,), (2, 4, 5)))
    tr = t @ r
    weight = torch.stack([tr[0], r[1], tr[2], tr[1], r[0]])
    tensors = {"R": r, "T": t, "order": torch.tensor([2, 1, 4, 3, 0], dtype=torch.int32), "rows": torch.tensor([4, 1])}
    found = factored_linear("interpolative", tensors, b if biased else None)(x)
    torch.testing.assert_close(found, x @ weight.T + (b if biased else 0))


@pytest.mark.parametrize("biased", [True, False])
def test_two_factors_multiply_from_the_right(biased: bool) -> None:
    """y = A(B x) + b, in float32 whatever the stored dtype."""
    generator = torch.Generator().manual_seed(0)
    a, b, bias, x = (torch.randn(s, generator=generator) for s in ((7, 3), (3, 5), (7,), (2, 4, 5)))
    found = factored_linear("two_factor", {"A": a.half(), "B": b.half()}, bias if biased else None)(x)
    torch.testing.assert_close(found, x @ (a.half().float() @ b.half().float()).T + (bias if biased else 0))


@pytest.mark.parametrize("biased", [True, False])
def test_kept_rows_and_columns_are_plain_linears(biased: bool) -> None:
    """Of the size of what is stored, in float32, with the bias of the kept rows."""
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(s, generator=generator) for s in ((3, 5), (3,), (2, 4, 5)))
    tensors = {"weight": weight.half(), "bias": bias.half()}
    for form, index in (("modular_rows", "rows"), ("modular_columns", "cols")):
        found = factored_linear(form, tensors | {index: torch.tensor([0, 2, 6])}, bias.half() if biased else None)
        expected = x @ weight.half().float().T + (bias.half().float() if biased else 0)
        torch.testing.assert_close(found(x), expected)
        assert isinstance(found, nn.Linear)
        assert (found.in_features, found.out_features) == (5, 3)


@pytest.mark.parametrize("biased", [True, False])
def test_kept_rows_and_columns_stay_in_their_places(biased: bool) -> None:
    """Inputs and outputs have the original's width, a dropped output is its bias; float32 whatever is stored."""
    generator = torch.Generator().manual_seed(0)
    weight, bias, x, z = (torch.randn(s, generator=generator) for s in ((3, 5), (7,), (2, 4, 5), (2, 4, 7)))
    rows, order = torch.tensor([0, 2, 6]), torch.tensor([0, 3, 1, 3, 3, 3, 2], dtype=torch.int32)
    whole = torch.zeros(7, 5)
    whole[rows] = weight.half().float()
    found = factored_linear(
        "sparse_rows", {"weight": weight.half(), "rows": rows, "order": order}, bias if biased else None
    )
    torch.testing.assert_close(found(x), x @ whole.T + (bias if biased else 0))
    tensors = {"weight": weight.T.half(), "order": rows.int()}
    found = factored_linear("sparse_columns", tensors, bias[:5] if biased else None)
    torch.testing.assert_close(found(z), z @ whole + (bias[:5] if biased else 0))


def test_an_unknown_form_has_no_linear() -> None:
    """Forms are those that the runtime knows."""
    with pytest.raises(ValueError, match="form 'tucker'"):
        factored_linear("tucker", {})


def test_split_parts_answer_like_the_fused_projection() -> None:
    """Rows in storage order."""
    fused = nn.Linear(5, 9, bias=False)
    parts = {}
    for name, rows in zip(("q", "k"), fused.weight.split([6, 3]), strict=True):
        parts[name] = nn.Linear(5, len(rows), bias=False)
        parts[name].weight = nn.Parameter(rows)
    x = torch.randn(2, 5)
    torch.testing.assert_close(SplitLinear(parts)(x), fused(x))


@pytest.mark.parametrize("refused", [False, True])
def test_the_next_block_is_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: bool) -> None:
    """Exactly its bytes are asked for, and nothing depends on the answer."""
    checkpoint = open_checkpoint(make_checkpoint(tmp_path / "model", "llama", num_hidden_layers=3).folder)
    asked: list[tuple[int, int]] = []

    def advise(_file: int, offset: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        asked.append((offset, length))
        if refused:
            raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(os, "posix_fadvise", advise)
    stream = BlockStream(checkpoint)
    for index in range(3):
        asked.clear()
        with stream.block(index):
            pass
        following = f"model.layers.{index + 1}."
        expected = [info.location for name, info in checkpoint.tensors.items() if name.startswith(following)]
        assert sorted(asked) == sorted((place.offset, place.length) for place in expected if place)


@pytest.mark.parametrize("family", ["llama", "phi3", "olmo2"])
def test_a_linears_input_is_had_without_running_the_rest(tmp_path: Path, family: str) -> None:
    """It is what enters in a whole run; the linear itself and what comes after it are not run."""
    model = make_checkpoint(tmp_path / "model", family)
    stream = BlockStream(open_checkpoint(model.folder))
    hidden = stream.embed(torch.randint(0, 97, (2, 9), generator=torch.Generator().manual_seed(0)))
    with stream.block(1) as block:
        seen: dict[str, torch.Tensor] = {}
        for name, linear in block.linears.items():
            linear.register_forward_pre_hook(lambda _m, inputs, name=name: seen.update({name: inputs[0]}))
        block.forward(hidden)
        whole = dict(seen)
        for name in block.linears:
            seen.clear()
            torch.testing.assert_close(block.input_of(name, hidden), whole[name], rtol=0, atol=0)
            assert ("model.layers.1.mlp.down_proj.weight" in seen) == ("down_proj" in name)
