"""The sequential rule on whole models: both streams, the share that is chosen, and what goes without."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from curconvert.base.names import layer_of
from curconvert.calibration.text import load_tokens
from curconvert.jobs.convert import convert
from curconvert.jobs.parity import check_slices
from curconvert.methods.core.options import ConvertOptions
from curconvert.options.calibration import CalibrationOptions
from curconvert.options.source import SourceOptions
from curconvert.options.targets import LINEARS
from curconvert_runtime import load
from curconvert_runtime.checks.verification import VerifyOptions
from support.families import TinyModel, make_checkpoint
from support.folders import files_of
from support.names import linear_of
from support.tiny_runs import LENGTH, manifest_of, stored_tensors, tiny_options, token_file

RIDGE = 0.02


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Three layers; no test may change its files."""
    return make_checkpoint(tmp_path_factory.mktemp("sequential") / "model", "llama", num_hidden_layers=3)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine batches of eight sequences, and two for probes."""
    return token_file(tmp_path_factory.mktemp("text") / "ids.safetensors", sequences=74)


def asked(text: Path, method: str, sequences: int = 72, **values: Any) -> ConvertOptions:
    calibration = CalibrationOptions(
        source=str(text), sequences=sequences, tokens_per_sequence=LENGTH, probe_sequences=2
    )
    values = {"sequential": True, "targets": LINEARS, "ridge": RIDGE, "calibration": calibration, **values}
    return tiny_options(text, method, **values)


def run(model: TinyModel, out: Path, options: ConvertOptions, verification: VerifyOptions | None = None) -> Path:
    convert(SourceOptions(str(model.folder)), out, options, verification=verification)
    return out


def shares(folder: Path) -> dict[str, float | None]:
    """Share of each compressed matrix, by its weight's name."""
    return {m["name"]: m["teacher_share"] for m in manifest_of(folder)["matrices"] if m["form"] != "dense"}


def inputs_of(model: TinyModel, name: str, ids: np.ndarray) -> np.ndarray:
    """What enters a linear of transformers' model as it is now, sequence by sequence, in float64."""
    seen: list[torch.Tensor] = []
    linear = model.oracle.get_submodule(name.removesuffix(".weight"))
    handle = linear.register_forward_pre_hook(lambda _m, x: seen.append(x[0]))
    with torch.inference_mode():
        model.oracle(input_ids=torch.from_numpy(ids))
    handle.remove()
    return seen[0].double().numpy()


@pytest.mark.parametrize(("sequences", "every"), [(72, 8), (20, 3)])
def test_target_and_share_are_those_of_both_models(
    tmp_path: Path, model: TinyModel, text: Path, sequences: int, every: int
) -> None:
    """Of every linear, with inputs from transformers' model: the original, and with all factors before it put in.

    The last batch of so many is held out; of fewer than eight batches the last one is.
    """
    options = asked(text, "svd-llm", sequences, rank=8)
    found = shares(run(model, tmp_path / "out", options))
    stored, original = stored_tensors(tmp_path / "out"), load_file(model.folder / "model.safetensors")
    ids = load_tokens(options.calibration).calibration
    names = sorted(found, key=lambda name: (layer_of(name), LINEARS.index(linear_of(name))))
    teacher = {name: inputs_of(model, name, ids) for name in names}
    held_out = np.arange(len(ids)) // 8 % every == every - 1
    assert 0 < held_out.sum() < len(ids)
    group: list[str] = []
    try:
        for name in names:
            if linear_of(name) not in ("k_proj", "v_proj", "up_proj"):  # whose inputs are the same as the ones before
                put_in(model, stored, group)
                student, group = inputs_of(model, name, ids), []
            group.append(name)
            W, x, x_hat = original[name].double().numpy(), teacher[name], student
            part = [array.reshape(-1, W.shape[1]) for array in (x[~held_out], x_hat[~held_out])]
            D = correction(W, *part)
            lost = ((x - x_hat)[held_out] @ W.T).ravel()
            gained = (x_hat[held_out] @ D.T).ravel()
            expected = np.clip(lost @ gained / (gained @ gained), 0, 1) if np.abs(x - x_hat).max() > 1e-4 else 0.0
            assert found[name] == pytest.approx(expected, abs=0.01), name
            x, x_hat = (array.reshape(-1, W.shape[1]) for array in (x, x_hat))
            target = W + (found[name] or 0.0) * correction(W, x, x_hat)
            gram = x_hat.T @ x_hat / len(x_hat)
            metric = np.linalg.cholesky(gram + RIDGE * np.diag(np.diag(gram)))
            stem = name.removesuffix(".weight")
            product = stored[f"{stem}.A"].double().numpy() @ stored[f"{stem}.B"].double().numpy()
            left = np.linalg.norm(np.linalg.svd(target @ metric, compute_uv=False)[8:])
            assert np.linalg.norm((target - product) @ metric) == pytest.approx(left, rel=1e-3), name
    finally:
        model.oracle.load_state_dict(original, strict=False)
    assert sum(share is not None and 0.05 < share < 0.999 for share in found.values()) > len(found) / 2


def put_in(model: TinyModel, stored: dict[str, torch.Tensor], names: list[str]) -> None:
    """Put products of factors into transformers' model."""
    with torch.no_grad():
        for name in names:
            stem = name.removesuffix(".weight")
            product = stored[f"{stem}.A"].double() @ stored[f"{stem}.B"].double()
            model.oracle.get_submodule(stem).weight.copy_(product)


def correction(weight: np.ndarray, x: np.ndarray, x_hat: np.ndarray) -> np.ndarray:
    """Least squares for what is lost, by the normal equations."""
    gram = x_hat.T @ x_hat / len(x)
    lost = weight @ ((x - x_hat).T @ x_hat / len(x))
    return np.asarray(np.linalg.solve(gram + RIDGE * np.diag(np.diag(gram)), lost.T).T)


def test_mixed_targets_bring_the_model_nearer_to_the_original(tmp_path: Path, model: TinyModel, text: Path) -> None:
    """Logits on the calibration text; a single batch leaves nothing to hold out, so there the student decides alone."""
    ids = load_tokens(asked(text, "pifa").calibration).calibration
    with torch.inference_mode():
        wanted = model.oracle(input_ids=torch.from_numpy(ids)).logits.numpy()

    def distance(folder: Path) -> float:
        session = load(folder, threads=1)
        return float(sum(np.linalg.norm(session.logits(row) - w) ** 2 for row, w in zip(ids, wanted, strict=True)))

    mixed = run(model, tmp_path / "mixed", asked(text, "pifa"))
    plain = run(model, tmp_path / "plain", asked(text, "pifa", sequential=False))
    assert distance(mixed) < 0.95 * distance(plain)


@pytest.mark.parametrize("method", ["cur", "row-id", "pifa", "svd-llm"])
def test_slices_and_parity_hold_with_mixed_targets(tmp_path: Path, model: TinyModel, text: Path, method: str) -> None:
    """C and R stay rows and columns of the original, and both graphs agree with torch."""
    out = run(model, tmp_path / "out", asked(text, method), VerifyOptions(max_parity=1e-4))
    assert any(shares(out).values())
    assert [check.name for check in check_slices(out, model.folder) if not check.passed] == []


PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "another metric": ("curing", {}),
    "a paper's metric": ("asvd", {}),
    "modules": ("neurons", {"targets": ("gate_proj", "up_proj", "down_proj"), "rank": 20}),
    "not sequential": ("cur", {"sequential": False}),
    "few tokens": ("cur", {"sequences": 1}),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_what_is_not_compared_has_no_share(tmp_path: Path, model: TinyModel, text: Path, kind: str) -> None:
    """Null in the manifest: a method that keeps its paper's target, a module, or fewer tokens than features."""
    method, values = PLAIN[kind]
    found = shares(run(model, tmp_path / "out", asked(text, method, **values)))
    assert found
    assert set(found.values()) == {None}


def test_a_single_batch_is_compared_and_not_trusted(tmp_path: Path, model: TinyModel, text: Path) -> None:
    """Nothing can be held out of it: share 0."""
    found = shares(run(model, tmp_path / "out", asked(text, "pifa", sequences=8)))
    assert set(found.values()) == {0.0}


def test_nothing_has_drifted_before_the_first_compressed_linear(tmp_path: Path, model: TinyModel, text: Path) -> None:
    """Its inputs are the original's, whatever dense layers come before it; those of the same block's others are not."""
    options = replace(asked(text, "pifa"), layers="1,2")
    found = shares(run(model, tmp_path / "out", options))
    first = {name: share for name, share in found.items() if layer_of(name) == 1}
    assert {linear_of(name) for name, share in first.items() if share == 0.0} == {"q_proj", "k_proj", "v_proj"}
    assert any(first.values())
    assert all(share for name, share in found.items() if layer_of(name) == 2)


def test_a_conversion_that_is_interrupted_after_every_block_gives_the_same_bytes(
    tmp_path: Path, model: TinyModel, text: Path
) -> None:
    """The original's states are kept beside the compressed model's."""
    options, source = asked(text, "cur"), SourceOptions(str(model.folder))
    run(model, tmp_path / "whole", options)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "compress" and done < total:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "out", options, verification=None, progress=stop)
    convert(source, tmp_path / "out", options, verification=None, progress=stop)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
