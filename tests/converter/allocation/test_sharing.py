"""Neighboring layers with one R: which pairs, within which budget, and the whole road of an artifact with them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from threadpoolctl import threadpool_limits

from curconvert.allocation.curves import Curve
from curconvert.allocation.sharing import Pair, matching
from curconvert.base.errors import InputError
from curconvert.jobs.conversion import Conversion
from curconvert.jobs.convert import convert
from curconvert.jobs.parity import check_slices, torch_parity
from curconvert.methods.core.options import ConvertOptions
from curconvert.options.execution import ExecutionOptions
from curconvert.options.source import SourceOptions
from curconvert_runtime import Artifact
from curconvert_runtime.checks.verification import VerifyOptions
from curconvert_runtime.format.forms import form_of
from curconvert_runtime.format.forms.form import Shared
from curconvert_runtime.format.onnx_external import external_tensors
from support.checkpoints import make_layers_alike
from support.families import make_checkpoint
from support.tiny_runs import manifest_of, stored_tensors, tiny_options, token_file

LAYERS = 4


@pytest.mark.parametrize("seed", range(20))
def test_the_chosen_pairs_are_the_best_of_all_choices(seed: int) -> None:
    """No choice of disjoint pairs of neighbors gains more, and none that costs is taken."""
    rng = np.random.default_rng(seed)
    gains = rng.standard_normal(int(rng.integers(0, 9))).tolist()
    choices = [
        chosen
        for count in range(len(gains) + 1)
        for chosen in itertools.combinations(range(len(gains)), count)
        if all(second - first > 1 for first, second in itertools.pairwise(chosen))
    ]
    curve = Curve.of({"a": "interpolative"}, [(4, 8)], {})
    pairs = [Pair((str(i), str(i + 1)), curve, gain) for i, gain in enumerate(gains)]
    found = [pairs.index(pair) for pair in matching(pairs)]
    assert tuple(found) in choices
    assert sum(gains[i] for i in found) == pytest.approx(max(sum(gains[i] for i in chosen) for chosen in choices))


def alike(folder: Path, model_type: str, **settings: Any) -> Path:
    """Make a checkpoint in which sharing is sure to pay."""
    make_checkpoint(folder, model_type, num_hidden_layers=LAYERS, **settings)
    make_layers_alike(folder)
    return folder


def options(folder: Path, **values: Any) -> ConvertOptions:
    tokens = token_file(folder / "ids.safetensors", 40)
    calibration = tiny_options(tokens).calibration
    settings = {"keep": 0.75, "rank_multiple": 2, "share": True, "self_text": 0.0, **values}
    return ConvertOptions.for_method("auto", calibration=calibration, **settings)


def shares(result: Conversion) -> dict[str, Shared]:
    assert result.plan is not None
    return {matrix.name: matrix.shared for matrix in result.plan.matrices if matrix.shared}


@pytest.mark.parametrize(
    ("model_type", "dtype"), [("llama", None), ("llama", "bfloat16"), ("qwen2", "float16"), ("phi3", None)]
)
def test_an_artifact_with_common_bases_is_verified(tmp_path: Path, model_type: str, dtype: str | None) -> None:
    """Every gate, torch from the artifact alone, the source's other tensors; R is stored once and counted once."""
    source = alike(tmp_path / "source", model_type)
    out = tmp_path / "out"
    result = convert(
        SourceOptions(str(source)), out, options(tmp_path, dtype=dtype), verification=VerifyOptions(max_parity=1e-3)
    )
    found = shares(result)
    assert found
    assert result.plan is not None
    assert all(Shared.of(row) == found.get(row["name"]) for row in manifest_of(out)["matrices"])
    checks = [*torch_parity(out).checks, *check_slices(out, source)]
    assert [check.name for check in checks if not check.passed] == []
    stored = stored_tensors(out)
    assert result.plan.parameters_after == sum(t.numel() for t in stored.values() if t.is_floating_point())
    assert result.plan.parameters_after <= 0.75 * result.plan.parameters_before
    for name, shared in found.items():
        first, second = shared.matrices
        assert (name.replace("weight", "R") in stored) == (name == first)
        assert int(second.split(".")[2]) == int(first.split(".")[2]) + 1
        assert first.split(".")[3:] == second.split(".")[3:]
    for kind in ("model.onnx", "model.fused.onnx"):
        onnx.checker.check_model(str(out / kind)) if kind == "model.onnx" else None
        names = [tensor.name for tensor in external_tensors(out / kind)]
        assert len(names) == len(set(names))


def test_the_errors_in_the_manifest_are_those_of_what_is_stored(tmp_path: Path) -> None:
    """Of both matrices of a pair, with the R of the first."""
    source, out = alike(tmp_path / "source", "llama"), tmp_path / "out"
    convert(SourceOptions(str(source)), out, options(tmp_path))
    artifact, original = Artifact.open(out), stored_tensors(source)
    rows = [row for row in artifact.manifest["matrices"] if row["shared"]]
    assert len(rows) >= 4
    for row in rows:
        shape, shared = (row["shape"][0], row["shape"][1]), Shared.of(row)
        names = form_of(row["form"]).tensor_names(row["name"], shared)
        product = form_of(row["form"]).multiply(shape, {s: artifact.tensor(name) for s, name in names.items()})
        W = original[row["name"]].double().numpy()
        error = np.linalg.norm(W - product) / np.linalg.norm(W)
        assert row["relative_frobenius_error"] == pytest.approx(error, rel=1e-6)
        assert row["parameters_after"] == form_of("interpolative").parameters(shape, row["rank"], shared, row["name"])


def test_sharing_keeps_the_budget_and_lowers_the_divergence(tmp_path: Path) -> None:
    """Where layers are alike, the same size loses less."""
    source, found = alike(tmp_path / "source", "llama"), []
    for share in (False, True):
        result = convert(
            SourceOptions(str(source)), tmp_path / f"{share}", options(tmp_path, share=share),
            verification=VerifyOptions(),
        )  # fmt: skip
        assert bool(shares(result)) == share
        assert result.report is not None
        assert result.report.fidelity is not None
        assert result.plan is not None
        found.append((result.report.fidelity.kl.mean, result.plan.parameters_after))
    assert found[1][0] < 0.9 * found[0][0]
    assert found[1][1] <= 0.75 * sum(t.numel() for t in stored_tensors(source).values())


def test_layers_unlike_each_other_do_not_share_at_a_loss(tmp_path: Path) -> None:
    """Square matrices never do: there is nothing to save."""
    make_checkpoint(tmp_path / "source", "llama", num_hidden_layers=LAYERS, num_key_value_heads=4)
    result = convert(SourceOptions(str(tmp_path / "source")), tmp_path / "out", options(tmp_path))
    assert shares(result) == {}


def test_a_search_shares_too(tmp_path: Path) -> None:
    """And stays within its divergence."""
    source = alike(tmp_path / "source", "llama")
    asked = options(tmp_path, keep=None, max_kl=0.1)
    result = convert(SourceOptions(str(source)), tmp_path / "out", asked, verification=VerifyOptions(max_kl=0.1))
    assert shares(result)


class StopError(Exception):
    """Raised by a progress callback."""


def test_an_interruption_between_the_two_layers_changes_no_byte(tmp_path: Path) -> None:
    """Stopped after every block, whatever the number of workers and threads, the second half fits the first one's R."""
    source, asked = alike(tmp_path / "source", "llama"), options(tmp_path)
    whole = convert(SourceOptions(str(source)), tmp_path / "whole", asked)
    assert shares(whole)

    def progress(stage: str, _done: int, _total: int) -> None:
        if stage == "compress":
            raise StopError

    for workers in range(1, LAYERS + 1):
        with pytest.raises(StopError), threadpool_limits(1 + workers % 2, user_api="blas"):
            execution = ExecutionOptions("local", workers)
            convert(SourceOptions(str(source)), tmp_path / "out", asked, progress=progress, execution=execution)
    convert(SourceOptions(str(source)), tmp_path / "out", asked)
    for path in sorted((tmp_path / "whole").iterdir()):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_it_belongs_to_auto() -> None:
    """Another method has sizes of its own."""
    with pytest.raises(InputError, match="--share: belongs to --method auto, not to pifa"):
        ConvertOptions.for_method("pifa", rank=8, share=True)
