"""Gram matrices against NumPy in float64, over hooks of the tests' own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from curconvert.blocks.stream import BlockStream
from curconvert.calibration.statistics import StatisticsCollector, moments_of
from curconvert.checkpoint import open_checkpoint
from curconvert.linalg.statistics import InputStatistics
from support.families import make_checkpoint

NAMES = {
    "attention": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output": ("self_attn.o_proj",),
    "gate": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


def gram(inputs: list[torch.Tensor]) -> NDArray[np.float64]:
    flat = np.concatenate([x.numpy().astype(np.float64).reshape(-1, x.shape[-1]) for x in inputs])
    return np.asarray(flat.T @ flat / len(flat))


def collect(linears: dict[str, nn.Module], batches: list[torch.Tensor]) -> dict[tuple[str, ...], InputStatistics]:
    collector = StatisticsCollector(linears)
    with collector.collecting(), torch.inference_mode():
        for batch in batches:
            for linear in linears.values():
                linear(batch)
    return dict(collector.groups())


def test_gram_is_the_uncentered_mean_over_all_tokens() -> None:
    """Batches of unequal size; a mean far from zero stays in."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(shape, generator=generator) + 2 for shape in ((3, 5, 6), (1, 2, 6), (7, 6))]
    found = collect({"a": nn.Linear(6, 2)}, batches)
    statistics = found["a",]
    assert statistics.tokens == 15 + 2 + 7
    np.testing.assert_allclose(statistics.gram, gram(batches), rtol=1e-12)
    expected = np.sqrt(np.mean(np.concatenate([b.reshape(-1, 6).double().numpy() for b in batches]) ** 2, axis=0))
    np.testing.assert_allclose(statistics.rms, expected, rtol=1e-12)


def test_the_mean_makes_the_covariance() -> None:
    """First moments over all tokens of unequal batches; centered second moments are NumPy's covariance."""
    generator = torch.Generator().manual_seed(4)
    batches = [torch.randn(shape, generator=generator) * 0.1 + 20 for shape in ((3, 5, 6), (7, 6))]
    statistics = collect({"a": nn.Linear(6, 2)}, batches)["a",]
    flat = np.concatenate([b.reshape(-1, 6).double().numpy() for b in batches])
    np.testing.assert_allclose(statistics.mean, flat.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(statistics.centered.gram, np.cov(flat.T, bias=True), rtol=1e-8)
    assert not statistics.centered.mean.any()


def test_a_constant_feature_has_no_variance_at_all() -> None:
    """Rounding of either sign would give the square root of a negative number."""
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(5))
    x[:, 1], x[:, 4] = 0.1, -1e4 / 3
    centered = collect({"a": nn.Linear(6, 2)}, [x, x[:7]])["a",].centered
    assert (centered.rms == 0).tolist() == [False, True, False, False, True, False]
    assert not centered.gram[[1, 4]].any()
    assert not centered.gram[:, [1, 4]].any()


def test_products_are_exact_before_a_bias() -> None:
    """A variance of 1e-8 of the second moment is lost in a float32 product, not in a float64 one."""
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(6)) * 1e-2 + 100
    expected = np.cov(x.double().numpy().T, bias=True)
    errors = {}
    for biased in (True, False):
        linear = nn.Linear(3, 2, bias=biased)
        collector = StatisticsCollector({"a": linear}, exact=False)
        with collector.collecting():
            linear(x)
        ((_, statistics),) = collector.groups()
        errors[biased] = np.abs(statistics.centered.gram - expected).max() / expected.max()
    assert errors[True] < 1e-6
    assert errors[False] > 1e-2


@pytest.mark.parametrize("count", [3, 8, 17])
def test_every_eighth_batch_is_held_out_and_counted(count: int) -> None:
    """Its own moments, those of the rest, and those of all."""
    linear = nn.Linear(4, 2)
    batches = [torch.randn(5, 4, generator=torch.Generator().manual_seed(i)) + i for i in range(count)]
    collector = StatisticsCollector({"a": linear}, split=["a"])
    with collector.collecting(), torch.inference_mode():
        for batch in batches:
            linear(batch)
    ((_, found),) = collector.groups()
    held = [batch for i, batch in enumerate(batches) if i % 8 == 7]
    rest = [batch for i, batch in enumerate(batches) if i % 8 != 7]
    for statistics, tokens in ((found, batches), (found.rest, rest), (found.held_out, held)):
        if not tokens:
            assert statistics is None
            continue
        assert statistics is not None
        x = torch.cat(tokens).double().numpy()
        assert statistics.tokens == len(x)
        np.testing.assert_allclose(statistics.gram, x.T @ x / len(x), rtol=1e-12)
        np.testing.assert_allclose(statistics.mean, x.mean(0), rtol=1e-12)


@pytest.mark.parametrize("exact", [True, False])
def test_a_drift_is_the_moment_of_the_differences(exact: bool) -> None:
    """Of all tokens, of the held-out batches, of the rest, and centered; NumPy's on the tokens."""
    generator = torch.Generator().manual_seed(7)
    batches = [torch.randn(2, 5, 4, generator=generator) + 3 for _ in range(7)]
    originals = [batch + 0.1 * torch.randn(batch.shape, generator=generator) for batch in batches]
    moments = moments_of(4, torch.device("cpu"), exact=exact, every=3)
    for batch, original in zip(batches, originals, strict=True):
        moments.add(batch, original)
    found = moments.result()
    for statistics, wanted in ((found, range(7)), (found.held_out, (2, 5)), (found.rest, (0, 1, 3, 4, 6))):
        assert statistics is not None
        assert statistics.drift is not None
        x_hat, x = (
            torch.cat([part[i] for i in wanted]).double().numpy().reshape(-1, 4) for part in (batches, originals)
        )
        tolerance = {"rtol": 1e-9, "atol": 1e-14} if exact else {"rtol": 1e-4, "atol": 1e-6}
        np.testing.assert_allclose(statistics.drift.cross, (x - x_hat).T @ x_hat / len(x), **tolerance)
        np.testing.assert_allclose(statistics.drift.mean, (x - x_hat).mean(axis=0), **tolerance)
        centered = statistics.centered.drift
        assert centered is not None
        expected = (x - x_hat).T @ (x_hat - x_hat.mean(axis=0)) / len(x)
        np.testing.assert_allclose(centered.cross, expected, rtol=1e-2 if not exact else 1e-8, atol=1e-5)
        assert not centered.mean.any()


def test_a_drift_that_overflows_is_not_finite() -> None:
    """The original's inputs are checked as well."""
    moments = moments_of(3, torch.device("cpu"))
    moments.add(torch.ones(5, 3), torch.full((5, 3), torch.inf))
    assert not moments.result().finite


def test_linears_that_are_called_with_one_tensor_share_its_gram() -> None:
    """In every batch, whatever else is called in between."""
    batches = [torch.randn(4, 6), torch.randn(2, 6)]
    found = collect({"a": nn.Linear(6, 2), "b": nn.Linear(6, 3)}, batches)
    assert list(found) == [("a", "b")]
    assert found["a", "b"].tokens == 6


def test_equal_values_in_another_tensor_are_another_input() -> None:
    """Sharing is decided by identity."""
    a, b = nn.Linear(6, 2), nn.Linear(6, 2)
    collector = StatisticsCollector({"a": a, "b": b})
    x = torch.randn(3, 6)
    with collector.collecting():
        a(x)
        b(x.clone())
    assert [names for names, _ in collector.groups()] == [("a",), ("b",)]


def test_nothing_is_watched_outside_the_context() -> None:
    """The hooks are removed, also after an error."""
    linear = nn.Linear(6, 2)
    collector = StatisticsCollector({"a": linear})
    with pytest.raises(RuntimeError), collector.collecting():
        linear(torch.zeros(1, 5))
    linear(torch.zeros(1, 6))
    assert not linear._forward_pre_hooks


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "olmo2"])
def test_grams_of_a_block_equal_those_of_the_whole_model(tmp_path: Path, family: str) -> None:
    """Through the block stream, against hooks on transformers' model; q, k, v share one, gate and up another."""
    model = make_checkpoint(tmp_path / "model", family)
    ids = torch.randint(0, 97, (4, 11), generator=torch.Generator().manual_seed(0))
    stream = BlockStream(open_checkpoint(model.folder))
    batches = [stream.embed(part) for part in ids.split(2)]
    with stream.block(0) as block:
        batches = [block.forward(batch) for batch in batches]
    with stream.block(1) as block:
        collector = StatisticsCollector(block.linears)
        with collector.collecting():
            for batch in batches:
                block.forward(batch)
    found = dict(collector.groups())

    seen: dict[str, torch.Tensor] = {}
    layer = model.oracle.model.layers[1]
    fused = family == "phi3"
    watched = {
        "attention": layer.self_attn.qkv_proj if fused else layer.self_attn.q_proj,
        "output": layer.self_attn.o_proj,
        "gate": layer.mlp.gate_up_proj if fused else layer.mlp.gate_proj,
        "down": layer.mlp.down_proj,
    }
    for key, linear in watched.items():
        linear.register_forward_pre_hook(lambda _m, inputs, key=key: seen.update({key: inputs[0]}))
    with torch.inference_mode():
        model.oracle(input_ids=ids)

    assert {frozenset(names) for names in found} == {
        frozenset(f"model.layers.1.{name}.weight" for name in names) for names in NAMES.values()
    }
    for names, statistics in found.items():
        key = next(key for key, members in NAMES.items() if members[0] in " ".join(names))
        expected = gram([seen[key]])
        assert statistics.tokens == ids.numel()
        np.testing.assert_allclose(statistics.gram, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
