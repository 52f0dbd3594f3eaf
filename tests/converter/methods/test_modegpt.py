"""Conversions with smaller attention and MLP modules: every family's heads, biases, what stays dense, sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from curconvert.base.errors import InputError
from curconvert.base.plan import MatrixPlan, Plan
from curconvert.checkpoint import Checkpoint, open_checkpoint
from curconvert.checkpoint.linears import total_parameters
from curconvert.families.heads import Heads, attention_heads
from curconvert.jobs.convert import convert
from curconvert.jobs.parity import check_slices, torch_parity
from curconvert.methods.core.options import ConvertOptions, options_for_size
from curconvert.methods.modegpt import MoDeGPT
from curconvert.options.source import SourceOptions
from curconvert.options.targets import LINEARS
from curconvert_runtime.checks.verification import VerifyOptions
from support.families import make_checkpoint
from support.names import linear_of
from support.tiny_runs import manifest_of, stored_tensors, tiny_options

SPARSE = {"q_proj": "sparse_rows", "k_proj": "sparse_rows", "v_proj": "sparse_rows", "o_proj": "sparse_columns"}
ATTENTION = "model.layers.0.self_attn"
PARTIAL = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}}
NORMED = ("qwen3", "gemma3_text", "olmo2", "olmo3")


def modegpt(tokens: Path, density: float = 0.6, **values: Any) -> ConvertOptions:
    return tiny_options(tokens, "modegpt", rank=None, density=density, **values)


def make_plan(checkpoint: Checkpoint, options: ConvertOptions) -> Plan:
    return options.method.plan(checkpoint, options)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "hidden_size": 48}),
        ("qwen2", {"num_key_value_heads": 1}),
        ("smollm3", {}),
        ("phi3", PARTIAL),
        ("gemma2", {}),
        *((family, {"attention_bias": True}) for family in NORMED),
    ],
)
def test_a_conversion_verifies(tmp_path: Path, tokens: Path, family: str, settings: dict[str, Any]) -> None:
    """Every gate, torch at 1e-4, and the original's rows and biases; the plan counts what is stored."""
    model = make_checkpoint(tmp_path / "model", family, **settings)
    gates = VerifyOptions(max_parity=1e-4)
    found = convert(SourceOptions(str(model.folder)), tmp_path / "out", modegpt(tokens), verification=gates)
    assert found.report is not None
    assert found.report.passed
    checks = [*torch_parity(tmp_path / "out", gates).checks, *check_slices(tmp_path / "out", model.folder)]
    assert [check for check in checks if not check.passed] == []
    stored, manifest = stored_tensors(tmp_path / "out"), manifest_of(tmp_path / "out")
    numbers = sum(tensor.numel() for tensor in stored.values() if tensor.is_floating_point())
    assert found.plan is not None
    assert manifest["model"]["parameters_after"] == found.plan.parameters_after == numbers
    dense = {linear_of(m["name"]) for m in manifest["matrices"] if m["form"] == "dense"}
    assert dense == ({"q_proj", "k_proj"} if family in NORMED else set())
    for row in manifest["matrices"]:
        assert row["form"] in ("dense", SPARSE.get(linear_of(row["name"]), row["form"]))
        assert row["parameters_after"] <= 0.6 * row["parameters_before"] or row["form"] == "dense"


def test_what_a_norm_follows_stays_dense(tmp_path: Path, tokens: Path) -> None:
    """Zeros among the norm's inputs would change its other outputs; the plan says so."""
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, "qwen3").folder)
    by_name = {m.name: m for m in make_plan(checkpoint, modegpt(tokens)).matrices}
    for linear in ("q_proj", "k_proj"):
        found = by_name[f"{ATTENTION}.{linear}.weight"]
        assert (found.form, found.reason) == ("dense", "a norm follows it, which dropped dimensions would change")
    assert by_name[f"{ATTENTION}.v_proj.weight"].form == "sparse_rows"


def test_heads_are_read_from_the_model(tmp_path: Path) -> None:
    """Partial rotation, a layer without positions, norms."""
    assert attention_heads(make_checkpoint(tmp_path / "a", "phi3", **PARTIAL).config)[0] == Heads(4, 2, 8, 2, False)
    smollm3 = attention_heads(make_checkpoint(tmp_path / "b", "smollm3").config)
    assert [layer.pairs for layer in smollm3] == [4, 0]
    assert attention_heads(make_checkpoint(tmp_path / "c", "olmo2").config)[1] == Heads(4, 2, 8, 4, True)


@pytest.mark.parametrize(("density", "query", "values"), [(0.6, 4, 4), (0.9, 6, 7), (0.3, 2, 2)])
def test_heads_keep_whole_units(tmp_path: Path, tokens: Path, density: float, query: int, values: int) -> None:
    """Of 8 dimensions: whole rotary pairs of queries and keys, any number of values; rounded down."""
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, "llama").folder)
    ranks = {linear_of(m.name): m.rank for m in make_plan(checkpoint, modegpt(tokens, density)).matrices}
    attention = [ranks[linear] for linear in SPARSE]
    assert attention == [4 * query, 2 * query, 2 * values, 4 * values]
    assert ranks["gate_proj"] == int(density * 48)


def test_too_small_a_share_leaves_heads_dense(tmp_path: Path, tokens: Path) -> None:
    """Less than a pair, or than a dimension, of each head cannot be kept."""
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, "llama").folder)
    matrices = {linear_of(m.name): m for m in make_plan(checkpoint, modegpt(tokens, 0.1)).matrices}
    for linear in SPARSE:
        assert matrices[linear].reason == "density 0.1 leaves nothing of a head"
    assert matrices["up_proj"].rank == 4


@pytest.mark.parametrize("sequential", [False, True])
def test_the_modules_can_be_taken_alone(tmp_path: Path, tokens: Path, sequential: bool) -> None:
    """Queries with keys, or values with outputs; all other matrices stay as they are."""
    model = make_checkpoint(tmp_path / "model", "llama")
    for pair in (("q_proj", "k_proj"), ("v_proj", "o_proj")):
        options = modegpt(tokens, targets=pair, sequential=sequential)
        convert(SourceOptions(str(model.folder)), tmp_path / pair[0], options, verification=VerifyOptions())
        matrices = manifest_of(tmp_path / pair[0])["matrices"]
        assert {linear_of(m["name"]) for m in matrices if m["form"] != "dense"} == set(pair)
        assert all(check.passed for check in check_slices(tmp_path / pair[0], model.folder))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"targets": ("q_proj", "v_proj", "o_proj")}, "--method modegpt needs whole groups: q_proj,k_proj and"),
        ({"targets": ("down_proj",)}, "needs whole groups"),
        ({"rank": 6}, "--method modegpt takes one size of --density; found --rank"),
        ({"keep": 0.9}, "found --keep"),
    ],
)
def test_what_modegpt_does_not_take_is_refused(values: dict[str, Any], message: str) -> None:
    """Parts of a module, and another size than a density."""
    with pytest.raises(InputError) as error:
        ConvertOptions.for_method("modegpt", **values)
    assert message in str(error.value)


def test_the_default_is_a_share_of_everything() -> None:
    """Three quarters of all seven linears."""
    options = ConvertOptions.for_method("modegpt")
    assert (options.method, options.targets) == (MoDeGPT(density=0.75), LINEARS)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_size_of_the_whole_model_is_met(tmp_path: Path, tokens: Path, family: str) -> None:
    """At most as large, and smaller only by what whole dimensions cost; what stays dense is not counted on."""
    model = make_checkpoint(tmp_path, family, head_dim=32, num_hidden_layers=3)
    checkpoint = open_checkpoint(model.folder)
    calibration = tiny_options(tokens).calibration
    target = int(0.8 * total_parameters(checkpoint))
    plan = make_plan(checkpoint, options_for_size(checkpoint, "modegpt", target, calibration=calibration))
    assert 0.95 * target < plan.parameters_after <= target


def test_an_impossible_size_is_refused(tmp_path: Path) -> None:
    """The rest of the model, dense queries and keys included, is larger."""
    checkpoint = open_checkpoint(make_checkpoint(tmp_path, "qwen3").folder)
    with pytest.raises(InputError, match="the part that modegpt does not compress already has"):
        options_for_size(checkpoint, "modegpt", 10_000)


def test_a_changed_row_of_the_original_is_found(tmp_path: Path, tokens: Path) -> None:
    """Kept rows of q_proj are the original's; those of v_proj do not claim to be."""
    model = make_checkpoint(tmp_path / "model", "llama")
    convert(SourceOptions(str(model.folder)), tmp_path / "out", modegpt(tokens))
    stored = stored_tensors(tmp_path / "out")
    for linear, expected in (("v_proj", {"source.files"}), ("q_proj", {"source.files", "source.slices"})):
        row = int(stored[f"{ATTENTION}.{linear}.rows"][1])
        tensors = load_file(model.folder / "model.safetensors")
        tensors[f"{ATTENTION}.{linear}.weight"].view(torch.int32)[row, 3] ^= 1
        save_file(tensors, model.folder / "model.safetensors", metadata={"format": "pt"})
        checks = check_slices(tmp_path / "out", model.folder)
        assert {check.name for check in checks if not check.passed} == expected


@pytest.mark.parametrize("change", [{"k_proj": None}, {"k_proj": 4}, {"q_proj": 22, "k_proj": 11}])
def test_a_plan_in_parts_is_refused(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, int | None]
) -> None:
    """Both of two that belong together, with as many dimensions of each head."""
    model = make_checkpoint(tmp_path / "model", "llama")

    real = MoDeGPT.plan

    def planned(*arguments: Any) -> Plan:
        plan = real(*arguments)
        for matrix in plan.matrices:
            if linear_of(matrix.name) in change:
                rank = change[linear_of(matrix.name)]
                form = "dense" if rank is None else matrix.form
                object.__setattr__(matrix, "rank", rank)
                object.__setattr__(matrix, "form", form)
        return plan

    monkeypatch.setattr(MoDeGPT, "plan", planned)
    with pytest.raises(InputError, match="q_proj and k_proj must keep the same number of dimensions per head"):
        convert(SourceOptions(str(model.folder)), tmp_path / "out", modegpt(tokens))
    assert not (tmp_path / "out").exists()


def test_a_second_run_gives_the_same_bytes(tmp_path: Path, tokens: Path) -> None:
    """Nothing is random."""
    model = make_checkpoint(tmp_path / "model", "qwen2")
    for name in ("first", "second"):
        convert(SourceOptions(str(model.folder)), tmp_path / name, modegpt(tokens), verification=None)
    first, second = (stored_tensors(tmp_path / name) for name in ("first", "second"))
    assert all(np.array_equal(first[name].numpy(), second[name].numpy()) for name in first)


def test_a_plan_knows_its_numbers() -> None:
    """r·n of rows, m·r of columns."""
    assert MatrixPlan("x.q_proj.weight", (32, 20), "sparse_rows", 12).parameters_after == 240
    assert MatrixPlan("x.o_proj.weight", (20, 32), "sparse_columns", 12).parameters_after == 240
