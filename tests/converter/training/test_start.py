"""The start by least squares, against NumPy on the inputs and outputs that transformers gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from curconvert.base.errors import InputError
from curconvert.calibration.text import load_tokens
from curconvert.jobs.convert import convert
from curconvert.jobs.heal import heal
from curconvert.options.calibration import CalibrationOptions
from curconvert.options.heal import HealOptions
from curconvert.options.source import SourceOptions
from curconvert.training.start import RIDGE
from curconvert_runtime import VerifyOptions
from support.families import make_checkpoint
from support.tiny_runs import LENGTH, manifest_of, stored_tensors, tiny_options, token_file


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, artifacts of it, and token ids to solve on."""
    folder = tmp_path_factory.mktemp("start")
    make_checkpoint(folder / "source", "llama")
    tokens = token_file(folder / "ids.safetensors")
    token_file(folder / "data.safetensors", sequences=72, seed=1)
    source = SourceOptions(str(folder / "source"))
    targets = ("q_proj", "o_proj", "gate_proj")
    convert(source, folder / "cur", tiny_options(tokens, targets=targets))
    convert(source, folder / "pifa", tiny_options(tokens, "pifa", targets=targets))
    convert(source, folder / "svd", tiny_options(tokens, "svd-llm", targets=targets))
    return folder


def data(home: Path) -> CalibrationOptions:
    return CalibrationOptions(
        str(home / "data.safetensors"), sequences=64, tokens_per_sequence=LENGTH, probe_sequences=8
    )


def solved(home: Path, name: str, out: Path, **values: Any) -> Any:
    options = HealOptions(start="als", data=data(home), **{"steps": 0, **values})
    return heal(home / name, SourceOptions(str(home / "source")), out, options, verification=VerifyOptions())


def wide(tensors: dict[str, torch.Tensor], stem: str) -> dict[str, np.ndarray]:
    return {suffix: tensors[f"{stem}.{suffix}"].double().numpy() for suffix in "CURT" if f"{stem}.{suffix}" in tensors}


def product(folder: Path, stem: str) -> torch.Tensor:
    tensors = stored_tensors(folder)
    parts = wide(tensors, stem)
    if "C" in parts:
        return torch.from_numpy(parts["C"] @ parts["U"] @ parts["R"])
    return torch.from_numpy(np.concatenate([parts["R"], parts["T"] @ parts["R"]])[tensors[f"{stem}.order"].numpy()])


def model(home: Path, artifact: Path | None = None) -> Any:
    """The original in float64, with the products of an artifact's factors where it has some."""
    found = AutoModelForCausalLM.from_pretrained(home / "source", dtype=torch.float64, attn_implementation="eager")
    for row in manifest_of(artifact)["matrices"] if artifact else ():
        if row["form"] != "dense":
            found.get_parameter(row["name"]).data = product(artifact, row["name"].removesuffix(".weight"))
    return found.eval()


def recorded(network: Any, stems: list[str], ids: torch.Tensor) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Inputs and outputs of linears, (tokens, features)."""
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def keep(stem: str) -> Any:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            found[stem] = (inputs[0].flatten(0, 1).numpy(), output.flatten(0, 1).numpy())

        return hook

    for stem in stems:
        network.get_submodule(stem).register_forward_hook(keep(stem))
    with torch.no_grad():
        network(ids)
    return found


@pytest.mark.parametrize("name", ["cur", "pifa"])
def test_every_factor_is_the_least_squares_solution_for_its_inputs(home: Path, tmp_path: Path, name: str) -> None:
    """What entered a linear when it was solved is what enters it in the end: only what comes behind changed since."""
    solved(home, name, tmp_path / "out")
    stems = [row["name"].removesuffix(".weight") for row in manifest_of(home / name)["matrices"] if row["rank"]]
    assert len(stems) == 6
    ids = torch.from_numpy(load_tokens(data(home)).calibration)
    theirs, ours = (recorded(network, stems, ids) for network in (model(home), model(home, tmp_path / "out")))
    before, after = stored_tensors(home / name), stored_tensors(tmp_path / "out")
    for stem in stems:
        was, now = wide(before, stem), wide(after, stem)
        z = was["R"] @ ours[stem][0].T
        missed = theirs[stem][1].T - product(home / name, stem).numpy() @ ours[stem][0].T
        ridge = np.diag(np.sqrt(RIDGE * np.diag(z @ z.T)))
        right = np.linalg.pinv(np.concatenate([z, ridge], 1))
        if name == "pifa":
            missed = missed[np.argsort(before[f"{stem}.order"].numpy())[len(z) :]]
        wanted = np.concatenate([missed, np.zeros((len(missed), len(z)))], 1) @ right
        if name == "cur":
            wanted = np.linalg.pinv(was["C"]) @ wanted
        factor = "U" if name == "cur" else "T"
        assert np.abs(wanted).max() > 1e-3
        np.testing.assert_allclose(now[factor] - was[factor], wanted, atol=2e-4 * np.abs(was[factor]).max())


@pytest.mark.parametrize(("name", "mode"), [("cur", "whole"), ("cur", "blocks"), ("pifa", "whole")])
def test_hidden_states_come_closer_to_the_original(home: Path, tmp_path: Path, name: str, mode: str) -> None:
    """On text that nothing was solved on, behind the last block, by transformers; and the artifact verifies."""
    assert solved(home, name, tmp_path / "out", mode=mode).report.passed
    ids = torch.randint(3, 90, (16, LENGTH), generator=torch.Generator().manual_seed(7))
    states = []
    for network in (model(home), model(home, home / name), model(home, tmp_path / "out")):
        with torch.no_grad():
            states.append(network.model(ids).last_hidden_state)
    wanted, before, after = states
    assert float((after - wanted).square().mean() / (before - wanted).square().mean()) < 0.98


def test_training_goes_on_from_it(home: Path, tmp_path: Path) -> None:
    """The curve begins where least squares ends."""
    start = solved(home, "cur", tmp_path / "start").curves["heal"]
    trained = solved(home, "cur", tmp_path / "out", steps=20, warmup=2, evaluate_every=10, kl=1.0, learning_rate=3e-3)
    assert [point.step for point in start] == [0]
    assert trained.curves["heal"][0] == start[0]
    assert min(point.held_out for point in trained.curves["heal"]) < start[0].held_out


def test_a_form_without_a_linking_factor_has_nothing_to_solve(home: Path, tmp_path: Path) -> None:
    """Although its norms could be trained."""
    with pytest.raises(InputError, match="nothing to train in the forms"):
        solved(home, "svd", tmp_path / "out", train="u+norms")
