"""Conversions with smaller MLPs: biases, fused projections, mixed plans, and what is reported about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from curconvert.base.errors import InputError
from curconvert.base.plan import MatrixPlan, Plan
from curconvert.calibration.text import load_tokens
from curconvert.checkpoint import Checkpoint
from curconvert.factorization.types import FactorTask
from curconvert.jobs.convert import convert
from curconvert.jobs.parity import check_slices, torch_parity
from curconvert.linalg.statistics import InputStatistics
from curconvert.methods.core.context import Context
from curconvert.methods.core.options import ConvertOptions
from curconvert.methods.cur import CUR
from curconvert.methods.neurons import Neurons
from curconvert.options.settings import Settings
from curconvert.options.source import SourceOptions
from curconvert_runtime.checks.verification import VerifyOptions
from curconvert_runtime.format.vectors import MODULAR
from support.families import make_checkpoint
from support.names import linear_of
from support.tiny_runs import manifest_of, stored_tensors, tiny_options

STEM = "model.layers.0.mlp"


def failed(folder: Path, original: Path) -> set[str]:
    checks = [*torch_parity(folder).checks, *check_slices(folder, original)]
    return {check.name for check in checks if not check.passed}


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"mlp_bias": True, "attention_bias": True}),
        ("smollm3", {"mlp_bias": True}),
        ("phi3", {}),
        ("gemma2", {}),
        ("gemma3_text", {"hidden_activation": "gelu"}),
    ],
)
def test_a_conversion_verifies(
    tmp_path: Path, tokens: Path, family: str, settings: dict[str, Any], sequential: bool
) -> None:
    """Every gate, torch, and the original's rows and biases; config.json keeps the original's intermediate size."""
    model = make_checkpoint(tmp_path / "model", family, **settings)
    options = tiny_options(tokens, "neurons", rank=20, sequential=sequential, layers="0")
    found = convert(SourceOptions(str(model.folder)), tmp_path / "out", options, verification=VerifyOptions())
    assert found.report is not None
    assert found.report.passed
    assert failed(tmp_path / "out", model.folder) == set()
    stored = stored_tensors(tmp_path / "out")
    assert stored[f"{STEM}.gate_proj.weight"].shape == (20, 32)
    assert stored[f"{STEM}.down_proj.weight"].shape == (32, 20)
    assert (f"{STEM}.gate_proj.bias" in stored) == settings.get("mlp_bias", False)
    numbers = sum(tensor.numel() for tensor in stored.values() if tensor.is_floating_point())
    assert found.plan is not None
    assert found.plan.parameters_after == numbers


def test_a_damaged_bias_is_found(tmp_path: Path, tokens: Path) -> None:
    """One bit of a kept entry of the original's bias; a dropped entry is nobody's business."""
    model = make_checkpoint(tmp_path / "model", "llama", mlp_bias=True)
    convert(SourceOptions(str(model.folder)), tmp_path / "out", tiny_options(tokens, "neurons", rank=20))
    kept = stored_tensors(tmp_path / "out")[f"{STEM}.up_proj.rows"].tolist()
    dropped = next(neuron for neuron in range(48) if neuron not in kept)
    for neuron, expected in ((dropped, {"source.files"}), (kept[3], {"source.files", "source.tensors"})):
        tensors = load_file(model.folder / "model.safetensors")
        tensors[f"{STEM}.up_proj.bias"].view(torch.int32)[neuron] ^= 1
        save_file(tensors, model.folder / "model.safetensors", metadata={"format": "pt"})
        checks = check_slices(tmp_path / "out", model.folder)
        assert {check.name for check in checks if not check.passed} == expected


def test_the_reported_error_is_the_modules(tmp_path: Path, tokens: Path) -> None:
    """That of the first layer's down_proj equals a run of transformers with the smaller MLP beside the whole one."""
    model = make_checkpoint(tmp_path / "model", "llama")
    options = tiny_options(tokens, "neurons", rank=20)
    convert(SourceOptions(str(model.folder)), tmp_path / "out", options, verification=None)
    stored, inputs = stored_tensors(tmp_path / "out"), []
    mlp = model.oracle.get_submodule(STEM)
    mlp.register_forward_pre_hook(lambda _module, arguments: inputs.append(arguments[0].double()))
    with torch.inference_mode():
        model.oracle(input_ids=torch.from_numpy(load_tokens(options.calibration).calibration))
        x = inputs[0].reshape(-1, 32)
        gate, up, down = (stored[f"{STEM}.{linear}.weight"].double() for linear in MODULAR)
        smaller = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
        whole = mlp.double()(x)
    matrices = {m["name"]: m for m in manifest_of(tmp_path / "out")["matrices"]}
    reported = matrices[f"{STEM}.down_proj.weight"]["relative_output_error"]
    assert reported == pytest.approx(float((whole - smaller).norm() / whole.norm()), rel=1e-4)


@dataclass(frozen=True)
class Mixed(CUR):
    """CUR, but some linears of MLPs are planned by hand, and get smaller together."""

    by_hand: Mapping[str, MatrixPlan] = field(default_factory=dict)

    def plan(self, checkpoint: Checkpoint, settings: Settings, layers: tuple[int, ...] | None = None) -> Plan:
        plan = super().plan(checkpoint, settings, layers)
        return replace(plan, matrices=tuple(self.by_hand.get(m.name, m) for m in plan.matrices))

    def tasks(
        self, plans: Sequence[MatrixPlan], statistics: Mapping[str, InputStatistics], context: Context
    ) -> Iterator[FactorTask]:
        mlp = [plan for plan in plans if plan.name in self.by_hand]
        yield from Neurons(rank=1).tasks(mlp, statistics, context) if mlp else ()
        yield from super().tasks([plan for plan in plans if plan not in mlp], statistics, context)

    def record(self) -> dict[str, Any]:
        return CUR(rank=self.rank).record()


def mixed(options: ConvertOptions, by_hand: Mapping[str, MatrixPlan]) -> ConvertOptions:
    assert isinstance(options.method, CUR)
    return replace(options, method=Mixed(rank=options.method.rank, by_hand=by_hand))


def modular(layer: int, rank: int, *linears: str) -> dict[str, MatrixPlan]:
    shapes = {"gate_proj": (48, 32), "up_proj": (48, 32), "down_proj": (32, 48)}
    names = {linear: f"model.layers.{layer}.mlp.{linear}.weight" for linear in linears or shapes}
    return {name: MatrixPlan(name, shapes[linear], MODULAR[linear], rank) for linear, name in names.items()}  # type: ignore[arg-type]


def test_a_plan_may_mix_forms_and_sizes(tmp_path: Path, tokens: Path) -> None:
    """CUR in the attention, and another number of neurons in each layer."""
    model = make_checkpoint(tmp_path / "model", "llama", mlp_bias=True)
    options = mixed(tiny_options(tokens, targets=("q_proj", "o_proj")), modular(0, 11) | modular(1, 37))
    convert(SourceOptions(str(model.folder)), tmp_path / "out", options, verification=VerifyOptions())
    assert failed(tmp_path / "out", model.folder) == set()
    rows = manifest_of(tmp_path / "out")["matrices"]
    found = {(m["name"].split(".")[2], linear_of(m["name"]), m["form"], m["rank"]) for m in rows}
    assert {("0", "q_proj", "cur", 8), ("0", "down_proj", "modular_columns", 11)} <= found
    assert {("1", "gate_proj", "modular_rows", 37), ("1", "v_proj", "dense", None)} <= found


@pytest.mark.parametrize(
    "change", [modular(0, 11, "gate_proj", "up_proj"), modular(0, 11) | modular(0, 12, "down_proj")]
)
def test_a_plan_in_parts_is_refused(tmp_path: Path, tokens: Path, change: dict[str, MatrixPlan]) -> None:
    """All three linears, one number of neurons."""
    model = make_checkpoint(tmp_path / "model", "llama")
    options = mixed(tiny_options(tokens, targets=("q_proj",)), change)
    with pytest.raises(InputError, match=r"layers\.0\.mlp\..*: a smaller MLP needs gate_proj, up_proj, down_proj"):
        convert(SourceOptions(str(model.folder)), tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_a_second_run_gives_the_same_bytes(tmp_path: Path, tokens: Path) -> None:
    """Nothing is random."""
    model = make_checkpoint(tmp_path / "model", "llama", mlp_bias=True)
    for name in ("first", "second"):
        options = tiny_options(tokens, "neurons", rank=20)
        convert(SourceOptions(str(model.folder)), tmp_path / name, options, verification=None)
    first, second = (stored_tensors(tmp_path / name) for name in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name].numpy(), second[name].numpy()) for name in first)
