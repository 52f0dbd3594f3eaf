"""Healing a tiny artifact from end to end: closer to the original, nothing else changed, resumed to the same bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from curconvert.artifact.workspace import workspace_of
from curconvert.base.errors import InputError
from curconvert.base.progress import silent
from curconvert.blocks.stored import build_torch_model
from curconvert.calibration.self_text import resident_model
from curconvert.calibration.text import load_tokens
from curconvert.checkpoint import open_checkpoint
from curconvert.jobs.convert import convert
from curconvert.jobs.heal import heal
from curconvert.jobs.parity import check_slices
from curconvert.options.calibration import CalibrationOptions
from curconvert.options.heal import HealOptions
from curconvert.options.source import SourceOptions
from curconvert.training.student import held_out_divergence
from curconvert_runtime import Artifact, VerifyOptions
from support.families import make_checkpoint
from support.tiny_runs import LENGTH, stored_tensors, tiny_options, token_file


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, artifacts of it, and token ids to train on."""
    folder = tmp_path_factory.mktemp("heal")
    make_checkpoint(folder / "source", "llama")
    tokens = token_file(folder / "ids.safetensors")
    token_file(folder / "data.safetensors", sequences=72, seed=1)
    source = SourceOptions(str(folder / "source"))
    convert(source, folder / "cur", tiny_options(tokens))
    convert(source, folder / "pifa", tiny_options(tokens, "pifa", rank=None, density=0.5))
    convert(source, folder / "svd", tiny_options(tokens, "svd-llm", rank=None, density=0.5))
    convert(source, folder / "half", tiny_options(tokens, dtype="bfloat16"))
    return folder


def options(home: Path, **values: Any) -> HealOptions:
    data = CalibrationOptions(
        str(home / "data.safetensors"), sequences=64, tokens_per_sequence=LENGTH, probe_sequences=8
    )
    given = {"steps": 40, "warmup": 4, "evaluate_every": 10, "learning_rate": 3e-3, "kl": 1.0, "data": data}
    return HealOptions(**{**given, **values})


def healed(home: Path, name: str, out: Path, **values: Any) -> Any:
    progress = values.pop("progress", silent)
    gates = VerifyOptions()
    return heal(
        home / name, SourceOptions(str(home / "source")), out, options(home, **values), verification=gates,
        progress=progress,
    )  # fmt: skip


def divergence(home: Path, artifact: Path) -> float:
    """KL on sequences that nothing was trained on, by the whole model."""
    ids = torch.randint(3, 90, (16, LENGTH), generator=torch.Generator().manual_seed(7)).numpy()
    teacher = resident_model(open_checkpoint(str(home / "source")))
    return held_out_divergence(build_torch_model(Artifact.open(artifact)), teacher, ids)


@pytest.mark.parametrize(("name", "factor"), [("cur", "U"), ("pifa", "T"), ("half", "U")])
def test_the_model_comes_closer_and_only_linking_factors_change(
    home: Path, tmp_path: Path, name: str, factor: str
) -> None:
    """On other text than it was trained on; C, R and all that was never compressed stay as they are, bit for bit."""
    result = healed(home, name, tmp_path / "out")
    assert result.report.passed
    before, after = stored_tensors(home / name), stored_tensors(tmp_path / "out")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert {key.rpartition(".")[2] for key in changed} == {factor}
    assert divergence(home, tmp_path / "out") < 0.98 * divergence(home, home / name)
    assert (tmp_path / "out" / "model.onnx").read_bytes() == (home / name / "model.onnx").read_bytes()
    assert all(check.passed for check in check_slices(tmp_path / "out", home / "source"))


def test_blocks_are_healed_one_by_one(home: Path, tmp_path: Path) -> None:
    """Each block's held-out error falls, and so does the whole model's divergence."""
    result = healed(home, "cur", tmp_path / "out", mode="blocks")
    layers = len(resident_model(open_checkpoint(str(home / "source"))).get_submodule("model.layers"))
    assert len(result.curves) == layers
    for curve in result.curves.values():
        assert min(point.held_out for point in curve) < curve[0].held_out
    assert divergence(home, tmp_path / "out") < 0.98 * divergence(home, home / "cur")


def test_blocks_of_a_16_bit_artifact_are_healed_on_its_own_embedding(home: Path, tmp_path: Path) -> None:
    """What enters its first block is rounded, unlike the original's: the curve begins at that block's real error."""
    result = healed(home, "half", tmp_path / "out", mode="blocks", steps=10)
    artifact, checkpoint = Artifact.open(home / "half"), open_checkpoint(str(home / "source"))
    ids = torch.from_numpy(load_tokens(options(home).data).probes)
    outputs = []
    for model in (build_torch_model(artifact), resident_model(checkpoint)):
        with torch.no_grad():
            outputs.append(model(input_ids=ids, output_hidden_states=True).hidden_states[1])
    ours, theirs = outputs
    errors = [float((a - b).square().mean() / b.square().mean()) for a, b in zip(ours, theirs, strict=True)]
    assert result.curves["block-0"][0].held_out == pytest.approx(sum(errors) / len(errors), rel=2e-6)


def test_norms_are_trained_where_that_is_asked(home: Path, tmp_path: Path) -> None:
    """Their scales change beside U; a form without a linking factor has only them."""
    healed(home, "svd", tmp_path / "out", train="u+norms")
    before, after = stored_tensors(home / "svd"), stored_tensors(tmp_path / "out")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert all("norm" in key for key in changed)
    assert all(check.passed for check in check_slices(tmp_path / "out", home / "source"))


def test_a_second_healing_remembers_the_first(home: Path, tmp_path: Path) -> None:
    """What the first one trained is still known to differ from the original, and how it was trained is kept."""
    healed(home, "cur", tmp_path / "first", train="u+norms")
    heal(tmp_path / "first", SourceOptions(str(home / "source")), tmp_path / "second", options(home))
    first, last = (Artifact.open(tmp_path / name).manifest["healing"] for name in ("first", "second"))
    assert last["earlier"] == first
    assert set(last["tensors"]) == set(first["tensors"])
    assert any("norm" in name for name in last["tensors"])
    assert all(check.passed for check in check_slices(tmp_path / "second", home / "source"))


def test_the_parts_of_a_batch_add_up(home: Path, tmp_path: Path) -> None:
    """Two halves, with activations computed again, give what the batch gives at once."""
    whole = healed(home, "cur", tmp_path / "whole", steps=10)
    parts = healed(home, "cur", tmp_path / "parts", steps=10, accumulate=2, checkpointing=True)
    (start, one), (same, two) = whole.curves["heal"], parts.curves["heal"]
    assert start == same
    assert one.loss == pytest.approx(
        two.loss, rel=1e-2
    )  # AdamW would hide a gradient of another scale; the loss does not
    assert one.held_out == pytest.approx(two.held_out, rel=1e-2)


class StoppedError(Exception):
    """Raised by a progress callback."""


def stopping(stage: str, step: int) -> Callable[[str, int, int], None]:
    def progress(name: str, done: int, _total: int) -> None:
        if (name, done) == (stage, step):
            raise StoppedError

    return progress


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    ("mode", "start", "stage", "step"),
    [("whole", "none", "heal", 25), ("blocks", "none", "block-1", 25), ("whole", "als", "blocks", 1)],
)
def test_a_stopped_run_goes_on_to_the_same_bytes(
    home: Path, tmp_path: Path, mode: str, start: str, stage: str, step: int
) -> None:
    """Stopped between two measurements, or after a block's least squares; the curve is the same, too."""
    given = {"mode": mode, "start": start}
    expected = healed(home, "cur", tmp_path / "expected", **given)
    with pytest.raises(StoppedError):
        healed(home, "cur", tmp_path / "out", **given, progress=stopping(stage, step))
    assert not (tmp_path / "out").exists()
    again = healed(home, "cur", tmp_path / "out", **given)
    assert again.curves == expected.curves
    assert digests(tmp_path / "out") == digests(tmp_path / "expected")
    assert not workspace_of(tmp_path / "out").exists()


def test_the_manifest_says_how(home: Path, tmp_path: Path) -> None:
    """Text, options and curve; errors that were those of other factors are gone."""
    healed(home, "cur", tmp_path / "out", steps=10)
    manifest = json.loads((tmp_path / "out" / "curconvert.json").read_text())
    assert manifest["healing"]["options"]["steps"] == 10
    assert [point["step"] for point in manifest["healing"]["curves"]["heal"]] == [0, 10]
    rows = [matrix for matrix in manifest["matrices"] if matrix["form"] == "cur"]
    assert all(matrix["relative_output_error"] is None for matrix in rows)
    count = sum(matrix["rank"] ** 2 for matrix in rows)
    assert manifest["healing"]["trained_parameters"] == count


def test_training_that_does_not_help_changes_nothing(home: Path, tmp_path: Path) -> None:
    """A rate that ruins the model: it ends after `patience` measurements, with the factors that it began with."""
    result = healed(home, "cur", tmp_path / "out", learning_rate=5.0, warmup=0, patience=2)
    assert result.curves["heal"][-1].step == 20
    before, after = stored_tensors(home / "cur"), stored_tensors(tmp_path / "out")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_what_has_nothing_to_train_is_refused(home: Path, tmp_path: Path) -> None:
    """Two factors have no linking one; the message says what can be done."""
    with pytest.raises(InputError, match=r"nothing to train in the forms .*two_factor.*--train u\+norms"):
        healed(home, "svd", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_original_is_refused(home: Path, tmp_path: Path) -> None:
    """By its hash, before anything is trained."""
    make_checkpoint(tmp_path / "other", "llama", seed=5)
    with pytest.raises(InputError, match="was made from other weights; give its own original"):
        heal(home / "cur", SourceOptions(str(tmp_path / "other")), tmp_path / "out", options(home))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train": "c"}, "--train 'c': expected one of u, u+norms"),
        ({"mode": "x"}, "--mode 'x': expected one of whole, blocks"),
        ({"hidden": -1.0}, "--hidden -1.0: expected a number of at least 0"),
        ({"hidden": 0.0, "ce": 0.0, "kl": 0.0}, "give at least one of them a weight above 0"),
        ({"learning_rate": float("nan")}, "--learning-rate nan: expected a number above 0"),
        ({"steps": 0}, "--steps 0: expected at least 1"),
        ({"start": "x"}, "--start 'x': expected one of none, als"),
        ({"objective": "x"}, "--objective 'x': expected one of distill, ce"),
        ({"accumulate": 3}, "--accumulate 3: expected a divisor of --batch 16"),
    ],
)
def test_bad_options_are_refused(home: Path, values: dict[str, Any], message: str) -> None:
    """With what was given and what is expected."""
    with pytest.raises(InputError) as raised:
        options(home, **values)
    assert message in str(raised.value)
