"""Conversions of models with biases: which are changed, to what, and that everything still agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from curconvert import ConvertOptions, SourceOptions, convert
from curconvert.allocation.sensitivity import Grid, Sensitivity
from curconvert.base.plan import MatrixPlan
from curconvert.base.progress import silent
from curconvert.calibration.evidence import Evidence
from curconvert.calibration.gradients import GradientSamples
from curconvert.calibration.text import load_tokens
from curconvert.checkpoint import open_checkpoint
from curconvert.jobs.parity import check_slices, torch_parity
from curconvert.linalg.statistics import InputStatistics
from curconvert.options.targets import LINEARS
from curconvert_runtime.checks.verification import VerifyOptions
from curconvert_runtime.format.forms import form_of
from support.families import TinyModel, make_checkpoint
from support.matrices import tasks_of
from support.tiny_runs import manifest_of, stored_tensors, tiny_options

BIASED = ("q_proj", "k_proj", "v_proj")


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A Qwen2 with three layers."""
    return make_checkpoint(tmp_path_factory.mktemp("qwen2") / "model", "qwen2", num_hidden_layers=3)


def asked(tokens: Path, method: str, **values: Any) -> ConvertOptions:
    if method != "auto":
        return tiny_options(tokens, method, **values)
    calibration = tiny_options(tokens).calibration
    values = {"keep": 0.8, "rank_multiple": 4, "self_text": 0.0, **values}  # the tests know the given text's means
    return ConvertOptions.for_method(method, calibration=calibration, **values)


def run(model: TinyModel, out: Path, options: ConvertOptions, max_parity: float = 1e-4) -> None:
    convert(SourceOptions(str(model.folder)), out, options, verification=VerifyOptions(max_parity=max_parity))
    checks = [*torch_parity(out, VerifyOptions(max_parity=max_parity)).checks, *check_slices(out, model.folder)]
    assert [check.name for check in checks if not check.passed] == []


def input_means(model: TinyModel, options: ConvertOptions) -> dict[str, np.ndarray]:
    """Mean input of each linear of transformers' model on the calibration tokens."""
    means: dict[str, np.ndarray] = {}
    handles = []
    for name, module in model.oracle.named_modules():
        if name.endswith("_proj"):

            def hook(_m: Any, inputs: tuple[torch.Tensor], name: str = name) -> None:
                means[name] = inputs[0].double().flatten(0, -2).mean(dim=0).numpy()

            handles.append(module.register_forward_pre_hook(hook))
    with torch.inference_mode():
        model.oracle(input_ids=torch.from_numpy(load_tokens(options.calibration).calibration))
    for handle in handles:
        handle.remove()
    return means


def changed_biases(model: TinyModel, out: Path, means: dict[str, np.ndarray]) -> set[str]:
    """Check that each bias is the source's or the predicted one, and return the names of the latter."""
    source, stored, changed = load_file(model.folder / "model.safetensors"), stored_tensors(out), set()
    for row in manifest_of(out)["matrices"]:
        stem = row["name"].removesuffix(".weight")
        if f"{stem}.bias" not in source or row["form"] == "modular_rows":
            continue
        bias = source[f"{stem}.bias"].double().numpy()
        if not row["corrected_bias"]:
            np.testing.assert_array_equal(stored[f"{stem}.bias"].numpy(), bias.astype(np.float32))
            continue
        parts = {suffix: stored[f"{stem}.{suffix}"].numpy() for suffix in _SUFFIXES[row["form"]]}
        product = form_of(row["form"]).multiply(tuple(row["shape"]), parts)
        expected = bias + (source[row["name"]].double().numpy() - product) @ means[stem]
        np.testing.assert_allclose(stored[f"{stem}.bias"].numpy(), expected, rtol=1e-4, atol=1e-5)
        assert np.abs(expected - bias).max() > 1e-3
        changed.add(stem)
    return changed


_SUFFIXES = {
    "cur": ("C", "U", "R"),
    "interpolative": ("R", "T", "order"),
    "two_factor": ("A", "B"),
    "modular_columns": ("weight", "cols"),
}


@pytest.mark.parametrize("method", ["cur", "row-id", "pifa", "svd-llm", "auto"])
def test_biases_of_compressed_linears_are_corrected(
    tmp_path: Path, qwen2: TinyModel, tokens: Path, method: str
) -> None:
    """b + (W − Ŵ) μ, with μ from transformers; all other biases are the source's; torch and both graphs agree."""
    options = asked(tokens, method, targets=LINEARS, **({} if method == "auto" else {"rank": 5, "layers": "0,2"}))
    run(qwen2, tmp_path / "out", options)
    found = changed_biases(qwen2, tmp_path / "out", input_means(qwen2, options))
    compressed = {
        row["name"].removesuffix(".weight")
        for row in manifest_of(tmp_path / "out")["matrices"]
        if row["form"] != "dense" and any(linear in row["name"] for linear in BIASED)
    }
    assert found == compressed
    assert found
    numbers = sum(tensor.numel() for tensor in stored_tensors(tmp_path / "out").values() if tensor.is_floating_point())
    assert numbers == manifest_of(tmp_path / "out")["model"]["parameters_after"]


@pytest.mark.parametrize("method", ["curing", "asvd", "fwsvd", "svd"])
def test_the_papers_methods_keep_every_bias(tmp_path: Path, qwen2: TinyModel, tokens: Path, method: str) -> None:
    """Bit for bit."""
    run(qwen2, tmp_path / "out", asked(tokens, method, targets=LINEARS, rank=5))
    assert changed_biases(qwen2, tmp_path / "out", {}) == set()


@pytest.mark.parametrize("method", ["neurons", "auto", "pifa"])
def test_mlp_biases(tmp_path: Path, tokens: Path, method: str) -> None:
    """down_proj's makes up for dropped neurons; those of gate and up are cut, or corrected where they are factored."""
    model = make_checkpoint(tmp_path / "model", "llama", mlp_bias=True, attention_bias=True)
    sizes: dict[str, dict[str, Any]] = {"neurons": {"rank": 20}, "pifa": {"targets": LINEARS, "rank": 5}, "auto": {}}
    options = asked(tokens, method, **sizes[method])
    run(model, tmp_path / "out", options)
    found = changed_biases(model, tmp_path / "out", input_means(model, options))
    assert "model.layers.1.mlp.down_proj" in found
    assert ("model.layers.1.mlp.up_proj" in found) == (method == "pifa")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("sequential", [False, True])
def test_half_precision_and_the_sequential_rule_agree_too(
    tmp_path: Path, qwen2: TinyModel, tokens: Path, dtype: str, sequential: bool
) -> None:
    """torch multiplies with the bias as it is stored."""
    run(qwen2, tmp_path / "out", asked(tokens, "cur", dtype=dtype, sequential=sequential))
    stored, source = stored_tensors(tmp_path / "out"), load_file(qwen2.folder / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.bias"
    assert stored[name].dtype == getattr(torch, dtype)
    assert not torch.equal(stored[name], source[name].to(stored[name].dtype))


def test_only_corrected_biases_may_differ(tmp_path: Path, qwen2: TinyModel, tokens: Path) -> None:
    """Another bias in the source is found beside a dense linear, and not beside a factored one."""
    run(qwen2, tmp_path / "out", asked(tokens, "cur", targets=("q_proj",)))
    tensors = load_file(qwen2.folder / "model.safetensors")
    source = make_checkpoint(tmp_path / "other", "qwen2", num_hidden_layers=3).folder
    for linear, expected in (("q_proj", {"source.files"}), ("k_proj", {"source.files", "source.tensors"})):
        bias = f"model.layers.1.self_attn.{linear}.bias"
        save_file({**tensors, bias: tensors[bias] + 1}, source / "model.safetensors", metadata={"format": "pt"})
        assert {check.name for check in check_slices(tmp_path / "out", source) if not check.passed} == expected


def test_the_price_of_a_rank_is_that_of_factors_and_bias(tmp_path: Path, qwen2: TinyModel, tokens: Path) -> None:
    """½ E[(gᵀ Δy)²] of what would be stored, corrected bias and all."""
    name = "model.layers.1.self_attn.q_proj.weight"
    checkpoint, evidence = open_checkpoint(qwen2.folder), Evidence(tmp_path)
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((300, 32)) + 10 * rng.standard_normal(32)).astype(np.float32)
    g = rng.standard_normal((300, 32)).astype(np.float32)
    wide = x.astype(np.float64)
    evidence.save_statistics([name], InputStatistics(wide.T @ wide / 300, 300, wide.mean(axis=0)))
    options = asked(tokens, "auto")
    sensitivity = Sensitivity(
        checkpoint, [name], Grid(options.ridge, options.rank_multiple, options.seed), evidence, silent
    )
    sensitivity.take(name, GradientSamples(x, g))
    (curve,) = sensitivity.curves
    plan = MatrixPlan(name, (32, 32), "interpolative", 12)
    (task,) = tasks_of(options, [plan], {}, checkpoint, torch.float32, evidence)
    found = task.run()[name]
    weight, bias = (checkpoint.read(part).double().numpy() for part in (name, name.replace("weight", "bias")))
    difference = wide @ (weight - found.product().numpy()).T + bias - found.tensors["bias"].double().numpy()
    expected = 0.5 * np.mean((g * difference).sum(axis=1) ** 2)
    assert curve.costs[curve.sizes.index(12)] == pytest.approx(expected, rel=1e-3)
