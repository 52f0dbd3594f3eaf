"""`--target cuda`: what is written for a GPU, and that it is verified on a machine without one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from curconvert.base.errors import InputError
from curconvert.jobs.bench.speed import step_bytes
from curconvert.jobs.export import export
from curconvert.jobs.parity import check_slices, torch_parity
from curconvert.methods.core.options import ConvertOptions
from curconvert.options.bench import Workload
from curconvert.options.quantization import Quantization
from curconvert.options.source import SourceOptions
from curconvert_runtime import GenerationOptions, load
from curconvert_runtime.checks.report import Check
from curconvert_runtime.checks.verification import VerifyOptions, verify
from curconvert_runtime.errors import IntegrityError
from curconvert_runtime.format.artifact import Artifact
from curconvert_runtime.format.hashing import sha256
from curconvert_runtime.serve.providers import PROVIDERS, Provider
from support.conversions import convert_tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint, and an artifact of it for CUDA."""
    return convert_tiny(tmp_path_factory.mktemp("cuda"), "qwen2", target="cuda")


def test_dtype_graph_and_settings_go_together(made: tuple[Path, Path]) -> None:
    """Weights and the fused graph's cache are float16, genai is told to use CUDA; the portable graph is as ever."""
    artifact = Artifact.open(made[1], full=True)
    assert artifact.model["dtype"] == "float16"
    assert (artifact.arithmetic("fused"), artifact.arithmetic("portable")) == ("float16", "float32")
    providers = json.loads((made[1] / "genai_config.json").read_text())["model"]["decoder"]["session_options"]
    assert providers["provider_options"] == [{"cuda": {"enable_skip_layer_norm_strict_mode": "1"}}]
    for kind, expected in (("fused", onnx.TensorProto.FLOAT16), ("portable", onnx.TensorProto.FLOAT)):
        graph = onnx.load(artifact.graphs[kind], load_external_data=False).graph
        cache = [value for value in (*graph.input, *graph.output) if value.name.endswith((".key", ".value"))]
        assert {value.type.tensor_type.elem_type for value in cache} == {expected}


def test_it_passes_verification_and_generates(made: tuple[Path, Path]) -> None:
    """Parity relative to the largest logit, fidelity of the float16 graph, the same tokens as the portable graph."""
    source, out = made
    report = verify(out)
    assert report.passed
    details = {check.name: check.detail for check in report.checks}
    assert "/ max |logit|" in details["parity.fused.logits"]
    assert "limit 0.02" in details["parity.fused.logits"]
    assert "limit 0.0001" in details["parity.portable.logits"]
    assert torch_parity(out).passed
    assert all(check.passed for check in check_slices(out, source))
    fused, portable = (load(out, graph=graph) for graph in ("fused", "portable"))  # type: ignore[arg-type]
    prompts, options = [[5, 9, 30, 7], [11, 4]], GenerationOptions(max_new_tokens=8, ignore_eos=True)
    found, expected = (session.generate(prompts, options) for session in (fused, portable))
    assert [row.ids for row in found] == [row.ids for row in expected]
    cache = fused.allocate_cache(2, 16)
    assert {value.numpy().dtype for value in cache.values} == {np.dtype(np.float16)}
    half, whole = (step_bytes(fused.artifact, graph, Workload(1, 128, 64)) for graph in ("fused", "portable"))
    assert half == whole / 2


def test_a_fault_of_the_float16_graph_is_found(made: tuple[Path, Path], tmp_path: Path) -> None:
    """Two layers' norm weights in each other's place: more than rounding, and named so."""
    out = tmp_path / "out"
    shutil.copytree(made[1], out)
    path = out / "model.fused.onnx"
    proto = onnx.load(path, load_external_data=False)
    weights = {value.name: value for value in proto.graph.initializer}
    first, second = (weights[f"model.layers.{layer}.input_layernorm.weight"] for layer in (0, 1))
    places = [list(value.external_data) for value in (first, second)]
    for value, place in zip((first, second), places[::-1], strict=True):
        del value.external_data[:]
        value.external_data.extend(place)
    path.write_bytes(proto.SerializeToString())
    failed = {check.name for check in torch_parity_of(out) if not check.passed}
    assert failed >= {"torch.fused.logits"}
    assert not failed & {"torch.portable.logits", "torch.portable.first_key"}


def torch_parity_of(out: Path) -> tuple[Check, ...]:
    """Compare an artifact whose graph was changed; its manifest gets the new digest."""
    manifest = json.loads((out / "curconvert.json").read_text())
    path = out / "model.fused.onnx"
    manifest["files"][path.name] = {"size": path.stat().st_size, "sha256": sha256(path)}
    (out / "curconvert.json").write_text(json.dumps(manifest))
    return torch_parity(out, VerifyOptions(max_parity=1e-4)).checks


def test_a_manifest_that_is_silent_about_float16_is_refused(made: tuple[Path, Path], tmp_path: Path) -> None:
    """The cache's type is part of the contract."""
    out = tmp_path / "out"
    shutil.copytree(made[1], out)
    manifest = json.loads((out / "curconvert.json").read_text())
    del manifest["graphs"]["fused"]["arithmetic"]
    (out / "curconvert.json").write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match="float16"):
        load(out, graph="fused")


def test_an_export_is_the_same_for_the_original(made: tuple[Path, Path], tmp_path: Path) -> None:
    """The baseline has the same arithmetic."""
    export(SourceOptions(str(made[0])), tmp_path / "out", target="cuda")
    artifact = Artifact.open(tmp_path / "out")
    assert (artifact.arithmetic("fused"), artifact.model["dtype"]) == ("float16", "float16")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"target": "tpu"}, "--target"),
        ({"target": "cuda", "dtype": "bfloat16"}, "computes in float16, not bfloat16"),
        ({"target": "cuda", "quantization": Quantization("int8", rounding="nearest")}, "--quantize"),
    ],
)
def test_what_does_not_go_together_is_refused(values: dict[str, Any], words: str) -> None:
    """With one line that says what to do."""
    with pytest.raises(InputError, match=words):
        ConvertOptions.for_method("cur", **values)
    with pytest.raises(InputError, match=words):
        export(SourceOptions("nowhere"), Path("out"), **values)


def test_a_target_is_any_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written for it follows its entry: arithmetic, whether it multiplies quantized weights, genai's name."""
    entry = Provider("ToyExecutionProvider", "toy", arithmetic="float16", quantized=False, genai={"toy": {"fast": "1"}})
    monkeypatch.setitem(PROVIDERS, "toy", entry)
    _, out = convert_tiny(tmp_path, "llama", target="toy")
    artifact = Artifact.open(out)
    assert (artifact.arithmetic("fused"), artifact.model["dtype"]) == ("float16", "float16")
    session = json.loads((out / "genai_config.json").read_text())["model"]["decoder"]["session_options"]
    assert session["provider_options"] == [{"toy": {"fast": "1"}}]
    with pytest.raises(InputError, match="--target toy: computes with float16 weights; --quantize is for --target cpu"):
        ConvertOptions.for_method("cur", target="toy", quantization=Quantization("int8", rounding="nearest"))
