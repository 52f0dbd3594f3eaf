"""The provider policy: what was asked for, or an error that says what to install."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnxruntime
import pytest

from curconvert_runtime import BackendError, backend, load
from support.tiny_artifact import reseal, toy_graph


def test_cuda_on_a_machine_without_it_fails(sealed: Path) -> None:
    """There is no silent fallback to the CPU."""
    with pytest.raises(BackendError, match=r"CUDAExecutionProvider is not available.*curconvert\[gpu\]"):
        load(sealed, provider="cuda")


def test_a_provider_that_fell_back_is_noticed(
    sealed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """onnxruntime may list CUDA and still load on the CPU; the session is then refused, and stdout stays clean."""
    original = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])

    def on_cpu(path: str, options: Any, providers: list[str], **_: Any) -> Any:
        return original(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", on_cpu)
    monkeypatch.setattr(
        onnxruntime, "preload_dlls", lambda: sys.stdout.write("Failed to load libcublas"), raising=False
    )
    with pytest.raises(BackendError, match="onnxruntime chose CPUExecutionProvider"):
        load(sealed, provider="cuda")
    assert capsys.readouterr().out == ""


def test_an_old_onnxruntime_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The version is compared as numbers, and the upgrade command is given."""
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(__version__="1.9.0"))
    with pytest.raises(BackendError, match=r"1\.9\.0 is older.*--upgrade"):
        backend.import_onnxruntime("cpu")


@pytest.mark.parametrize(("provider", "extra"), [("cpu", "curconvert\\[cpu\\]"), ("cuda", "curconvert\\[gpu\\]")])
def test_a_missing_onnxruntime_names_the_extra(monkeypatch: pytest.MonkeyPatch, provider: str, extra: str) -> None:
    """The message holds the command that installs it."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=extra):
        backend.import_onnxruntime(provider)


def test_a_graph_newer_than_onnxruntime_is_a_backend_error(toy: Path) -> None:
    """An opset that this onnxruntime does not know asks for an upgrade, in one line."""
    model = toy_graph(toy / "model.safetensors", "portable")
    model.opset_import[0].version = 99
    (toy / "model.onnx").write_bytes(model.SerializeToString())
    reseal(toy)
    with pytest.raises(BackendError, match="upgrade") as caught:
        load(toy, graph="portable")
    assert "\n" not in str(caught.value)


def test_a_broken_graph_leaves_stdout_clean(toy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """onnxruntime's habit of printing and trying other providers is switched off."""
    model = toy_graph(toy / "model.safetensors", "portable")
    model.graph.node[0].op_type = "NoSuchOperator"
    (toy / "model.onnx").write_bytes(model.SerializeToString())
    reseal(toy)
    with pytest.raises(BackendError, match="NoSuchOperator"):
        load(toy, graph="portable")
    assert capfd.readouterr().out == ""


def test_a_failure_while_running_is_a_backend_error(toy: Path) -> None:
    """What onnxruntime raises inside a request comes out as one line."""
    model = toy_graph(toy / "model.safetensors", "portable")
    node = next(node for node in model.graph.node if "model.positions.weight" in node.input)
    node.input[0] = "model.embed_tokens.weight"
    table = onnx.numpy_helper.from_array(__import__("numpy").zeros((2, 8), "float32"), "short")
    model.graph.initializer.append(table)
    node.input[0] = "short"
    (toy / "model.onnx").write_bytes(model.SerializeToString())
    reseal(toy)
    with pytest.raises(BackendError, match="onnxruntime failed") as caught:
        load(toy, graph="portable").logits([1, 2, 3])
    assert "\n" not in str(caught.value)


def test_versions_are_plain_json() -> None:
    """The environment record can be written into a report."""
    versions = backend.installed_versions()
    assert versions["numpy"] == __import__("numpy").__version__
    assert json.loads(json.dumps(versions)) == versions
