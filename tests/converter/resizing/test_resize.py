"""One scored artifact of a tiny model, cut to smaller ones: as good as fresh conversions, complete, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from curconvert import CalibrationOptions, ConvertOptions, SourceOptions, convert, export
from curconvert.artifact.manifest import seal
from curconvert.base.errors import CurConvertError, InputError, IntegrityError, UnsupportedError
from curconvert.jobs.parity import check_slices, torch_parity
from curconvert.jobs.resize import resize
from curconvert.options.execution import ExecutionOptions
from curconvert.options.quantization import Quantization
from curconvert.options.resize import ResizeOptions
from curconvert.resizing.components import components_bytes
from curconvert.training.rewrite import copy_with
from curconvert_runtime import Artifact, VerifyOptions, load
from curconvert_runtime.format.hashing import sha256
from curconvert_schemas import validate
from support.command_line import call, refused
from support.families import VOCABULARY, make_checkpoint
from support.folders import snapshot
from support.tiny_runs import manifest_of, stored_tensors

SIZES = (0.85, 0.7)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with biases everywhere, a scored artifact of it, and fresh conversions to smaller sizes."""
    folder = tmp_path_factory.mktemp("resize")
    make_checkpoint(folder / "source", "llama", attention_bias=True, mlp_bias=True)
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, VOCABULARY, (80, 40)))
    save_file({"input_ids": ids}, folder / "ids.safetensors")
    converted(folder, "scored", keep=0.92, scored=True)
    for keep in SIZES:
        converted(folder, f"fresh-{keep}", keep=keep)
    return folder


def converted(home: Path, name: str, **values: Any) -> None:
    text = str(home / "ids.safetensors")
    calibration = CalibrationOptions(text, sequences=64, tokens_per_sequence=40, probe_sequences=4)
    options = ConvertOptions.for_method("auto", calibration=calibration, rank_multiple=4, **values)
    convert(SourceOptions(str(home / "source")), home / name, options)


def logits(path: Path) -> np.ndarray:
    return load(path, graph="portable").logits(np.random.default_rng(5).integers(3, VOCABULARY, 40))


@pytest.mark.parametrize("keep", SIZES)
def test_a_cut_is_what_a_fresh_conversion_to_that_size_is(home: Path, tmp_path: Path, keep: float) -> None:
    """The same sizes everywhere, within the budget; the same answers but for rounding; and a whole, sound artifact."""
    result = resize(home / "scored", tmp_path / "out", ResizeOptions(keep), verification=VerifyOptions(max_parity=1e-4))
    fresh, ours = manifest_of(home / f"fresh-{keep}"), manifest_of(tmp_path / "out")
    assert [m["rank"] for m in ours["matrices"]] == [m["rank"] for m in fresh["matrices"]]
    assert [m["form"] for m in ours["matrices"]] == [m["form"] for m in fresh["matrices"]]
    assert [m["corrected_bias"] for m in ours["matrices"]] == [m["corrected_bias"] for m in fresh["matrices"]]
    forms = {m["form"] for m in ours["matrices"]}
    assert forms >= ({"interpolative", "modular_columns"} if keep < 0.8 else {"modular_columns"})
    before = ours["model"]["parameters_before"]
    stored = sum(t.numel() for t in stored_tensors(tmp_path / "out").values() if t.is_floating_point())
    assert stored == result.plan.parameters_after == ours["model"]["parameters_after"] <= keep * before
    whole, wanted, found = (logits(p) for p in (home / "scored", home / f"fresh-{keep}", tmp_path / "out"))
    assert np.linalg.norm(found - wanted) < 0.01 * np.linalg.norm(wanted - whole)
    checks = [*check_slices(tmp_path / "out", home / "source"), *torch_parity(tmp_path / "out").checks]
    assert [check.name for check in checks if not check.passed] == []
    for name in ("model.onnx", "model.fused.onnx", "config.json", "genai_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (home / f"fresh-{keep}" / name).read_bytes()
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in (home / f"fresh-{keep}").iterdir()}


def test_an_artifact_for_a_gpu_stays_one(home: Path, tmp_path: Path) -> None:
    """The fused graph goes on computing in float16, and onnxruntime-genai is told to use CUDA."""
    converted(home, "scored-cuda", keep=0.92, scored=True, target="cuda")
    resize(home / "scored-cuda", tmp_path / "out", ResizeOptions(0.7))
    whole, cut = Artifact.open(home / "scored-cuda"), Artifact.open(tmp_path / "out")
    assert cut.arithmetic("fused") == whole.arithmetic("fused") == "float16"
    assert cut.manifest["graphs"] == whole.manifest["graphs"]
    assert cut.file("genai_config.json").read_bytes() == whole.file("genai_config.json").read_bytes()
    assert cut.model["parameters_after"] <= 0.7 * cut.model["parameters_before"]
    checks = torch_parity(tmp_path / "out").checks
    assert [check.name for check in checks if not check.passed] == []


def test_where_it_came_from_is_told(home: Path, tmp_path: Path) -> None:
    """The scored manifest's hash, and no error that nobody has measured; the rest is the conversion's."""
    resize(home / "scored", tmp_path / "out", ResizeOptions(target_parameters=20_000))
    ours, theirs = manifest_of(tmp_path / "out"), manifest_of(home / "scored")
    assert ours["resized"] == {
        "manifest_sha256": sha256(home / "scored" / "curconvert.json"),
        "parameters": theirs["model"]["parameters_after"],
        "keep": None,
        "target_parameters": 20_000,
    }
    for row, old in zip(ours["matrices"], theirs["matrices"], strict=True):
        assert row == old if row["rank"] == old["rank"] else row["relative_output_error"] is None
    assert ours["source"] == theirs["source"]
    assert ours["calibration"] == theirs["calibration"]
    assert "from a scored artifact" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    shown = call("inspect", tmp_path / "out")
    assert shown.exit_code == 0
    assert "unknown" in shown.stdout


def test_what_keeps_its_size_keeps_its_bits(home: Path, tmp_path: Path) -> None:
    """Matrices that are not cut, embedding, norms and head are those of the scored artifact."""
    resize(home / "scored", tmp_path / "out", ResizeOptions(0.85))
    old, rows = stored_tensors(home / "scored"), manifest_of(tmp_path / "out")["matrices"]
    ranks = {m["name"]: m["rank"] for m in manifest_of(home / "scored")["matrices"]}
    cut = {m["name"].removesuffix("weight") for m in rows if m["rank"] != ranks[m["name"]]}
    assert 0 < len(cut) < len(rows)
    for name, tensor in stored_tensors(tmp_path / "out").items():
        if not name.startswith(tuple(cut)):
            assert torch.equal(tensor, old[name])


def test_smaller_is_worse(home: Path, tmp_path: Path) -> None:
    """Parameters fall and the verified divergence rises from size to size."""
    numbers, divergences = [], []
    for keep in (0.9, 0.8, 0.65):
        result = resize(home / "scored", tmp_path / f"{keep}", ResizeOptions(keep), verification=VerifyOptions())
        assert result.report is not None
        assert result.report.fidelity is not None
        numbers.append(result.plan.parameters_after)
        divergences.append(result.report.fidelity.kl.mean)
    assert numbers == sorted(numbers, reverse=True)
    assert divergences == sorted(divergences)


def test_the_same_bytes_whatever_the_workers(home: Path, tmp_path: Path) -> None:
    """Every file of the folder."""
    for name, workers in (("a", 1), ("b", 3)):
        resize(home / "scored", tmp_path / name, ResizeOptions(0.75), execution=ExecutionOptions(workers=workers))
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_scores_are_the_same_bytes_twice(home: Path) -> None:
    """And cost the artifact nothing: its weights are those of a conversion without them."""
    converted(home, "again", keep=0.92, scored=True)
    converted(home, "plain", keep=0.92)
    for name in ("components.json", "components.safetensors", "model.safetensors"):
        assert (home / "again" / name).read_bytes() == (home / "scored" / name).read_bytes()
    assert (home / "plain" / "model.safetensors").read_bytes() == (home / "scored" / "model.safetensors").read_bytes()


def test_16_bit_weights_are_cut_too(home: Path, tmp_path: Path) -> None:
    """They are rounded twice, and verified."""
    converted(home, "half", keep=0.92, scored=True, dtype="bfloat16")
    resize(home / "half", tmp_path / "out", ResizeOptions(0.85), verification=VerifyOptions())
    assert {t.dtype for t in stored_tensors(tmp_path / "out").values()} == {torch.bfloat16, torch.int32}
    assert all(check.passed for check in check_slices(tmp_path / "out", home / "source"))
    exact, found = logits(home / "fresh-0.85"), logits(tmp_path / "out")
    assert np.linalg.norm(found - exact) < 0.05 * np.linalg.norm(exact)


def test_scores_conform_to_their_schema_and_stay_out_of_what_is_healed(home: Path, tmp_path: Path) -> None:
    """Trained factors are not those that the components are of. Files for people are written anew."""
    validate(json.loads((home / "scored" / "components.json").read_text(encoding="utf-8")), "components-1.0")
    targets = {m["name"]: tuple(m["shape"]) for m in manifest_of(home / "scored")["matrices"]}
    stored = load_file(home / "scored" / "components.safetensors")
    room = sum(t.nbytes for name, t in stored.items() if not name.endswith(".mean"))
    assert 0.5 * components_bytes(targets) < room <= components_bytes(targets)
    copy_with(Artifact.open(home / "scored"), tmp_path, {})
    names = {path.name for path in (home / "scored").iterdir()}
    assert names - {path.name for path in tmp_path.iterdir()} == {
        "components.json", "components.safetensors", "curconvert.json", "README.md", "report.html",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("fresh-0.85", ResizeOptions(0.7), InputError, "--scored"),
        ("scored", ResizeOptions(0.95), InputError, "ask for fewer"),
        ("scored", ResizeOptions(target_parameters=10**9), InputError, "--target-params 1000000000"),
        ("scored", ResizeOptions(0.1), InputError, "keep more"),
        ("int8", ResizeOptions(0.7), UnsupportedError, "quantized"),
        ("exported", ResizeOptions(0.7), InputError, "--scored"),
    ],
)
def test_what_cannot_be_had_is_refused(
    home: Path, tmp_path: Path, name: str, options: ResizeOptions, error: type[CurConvertError], words: str
) -> None:
    """One line, its own class, and nothing is left behind."""
    if name in ("int8", "exported"):
        rounding = Quantization.of("int8", None, False, "nearest", None) if name == "int8" else None
        export(SourceOptions(str(home / "source")), tmp_path / "made", quantization=rounding)
    source = home / name if (home / name).exists() else tmp_path / "made"
    with pytest.raises(error, match=words):
        resize(source, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "one size"),
        ({"keep": 0.5, "target_parameters": 9}, "one size"),
        ({"keep": 1.0}, "--keep 1.0"),
        ({"target_parameters": 0}, "--target-params 0"),
    ],
)
def test_sizes_that_are_none_are_refused(values: dict[str, Any], words: str) -> None:
    """As options, before anything is read."""
    with pytest.raises(InputError, match=words):
        ResizeOptions(**values)


@pytest.mark.parametrize(
    "values", [{"method": "cur"}, {"share": True}, {"quantization": Quantization.of("int8", None, False, None, None)}]
)
def test_what_cannot_be_cut_later_is_not_scored(values: dict[str, Any]) -> None:
    """Other methods, shared bases, integers."""
    with pytest.raises(InputError, match="--scored"):
        ConvertOptions.for_method(**{"method": "auto", "scored": True, **values})


def _scores(change: Callable[[list[dict[str, Any]]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "components.json"
        scores = json.loads(path.read_text(encoding="utf-8"))
        change(scores["modules"])
        path.write_text(json.dumps(scores), encoding="utf-8")

    return apply


def _swap(modules: list[dict[str, Any]], linear: str) -> None:
    """Exchange a linear of two layers' MLPs."""
    first, second = (module["forms"] for module in modules if len(module["forms"]) == 3)
    a, b = (next(name for name in forms if linear in name) for forms in (first, second))
    first[b], second[a] = first.pop(a), second.pop(b)


def _tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "components.safetensors")
        change(tensors)
        save_file(tensors, folder / "components.safetensors")

    return apply


def _named(tensors: dict[str, torch.Tensor], suffix: str) -> str:
    return next(name for name in tensors if name.endswith(suffix))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_scores(lambda modules: modules[0].update(costs=[-1.0])), "modules"),
        (_scores(lambda modules: modules[0]["costs"].pop()), "one cost of each size"),
        (_scores(lambda modules: modules[0].update(sizes=[999], costs=[0.1])), "sizes below"),
        (_scores(lambda modules: modules.append(modules[0])), "named twice"),
        (_scores(lambda modules: _swap(modules, "gate_proj")), "one modular MLP"),
        (_scores(lambda modules: modules[0].update(forms={"model.x.weight": "interpolative"})), "manifest"),
        (_scores(lambda modules: [m.update(forms=dict(list(m["forms"].items())[:1])) for m in modules]), "no curve"),
        (_tensors(lambda tensors: tensors.pop(_named(tensors, ".basis"))), "is None, expected"),
        (_tensors(lambda tensors: [t.fill_(torch.nan) for n, t in tensors.items() if n.endswith(".basis")]), "NaN"),
        (_tensors(lambda tensors: tensors[_named(tensors, ".order")].fill_(1)), "order of the kept neurons"),
    ],
)
def test_components_that_do_not_fit_are_found(
    home: Path, tmp_path: Path, change: Callable[[Path], None], words: str
) -> None:
    """Also where the manifest agrees with their bytes."""
    artifact = Artifact.open(home / "scored")
    folder = tmp_path / "changed"
    folder.mkdir()
    for name in artifact.manifest["files"]:
        (folder / name).write_bytes((home / "scored" / name).read_bytes())
    change(folder)
    seal(folder, {name: value for name, value in artifact.manifest.items() if name != "files"})
    with pytest.raises(IntegrityError, match=words):
        resize(folder, tmp_path / "out", ResizeOptions(0.65))
    assert not (tmp_path / "out").exists()


def test_the_command(home: Path, tmp_path: Path) -> None:
    """JSON, a verified artifact, the same for the same; refusals with their exit codes; the source is untouched."""
    before = snapshot(home / "scored")
    done = call("resize", home / "scored", "-o", tmp_path / "out", "--keep", "0.8", "--json", "--quiet")
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed["verification"]["passed"]
    assert printed["plan"]["parameters_after"] == manifest_of(tmp_path / "out")["model"]["parameters_after"]
    refused(call("resize", home / "scored", "-o", tmp_path / "out", "--keep", "0.7", "--quiet"), 2, "--overwrite")
    again = ("-o", tmp_path / "out", "--overwrite", "--quiet")
    refused(call("resize", home / "scored", *again, "--keep", "0.7", "--max-kl", "1e-9"), 3, "KL")
    refused(call("resize", home / "scored", *again), 2, "one size")
    refused(call("resize", home / "scored", "-o", home / "scored" / "in", "--keep", "0.7", "--quiet"), 2, "overlap")
    (tmp_path / "out" / "model.onnx").write_bytes(b"")
    refused(call("resize", tmp_path / "out", "-o", tmp_path / "next", "--keep", "0.5", "--quiet"), 4, "model.onnx")
    assert call("resize", home / "scored", *again, "--target-params", "20000", "--no-verify").exit_code == 0
    assert snapshot(home / "scored") == before
