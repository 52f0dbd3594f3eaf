"""The provider policy: what was asked for, or an error that says what to install."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from curconvert_runtime import BackendError, CpuOptions, CudaOptions, InputError, load, version
from curconvert_runtime.serve import backend
from curconvert_runtime.serve.decoding import Decoder
from curconvert_runtime.version import installed_versions
from support.onnx_writer import Tensor
from support.tiny_artifact import reseal, toy_graph


def test_cuda_on_a_machine_without_it_fails(sealed: Path) -> None:
    """There is no silent fallback to the CPU."""
    with pytest.raises(BackendError, match=r"CUDAExecutionProvider is not available.*curconvert\[gpu\]"):
        load(sealed, provider="cuda")


def test_a_provider_that_fell_back_is_noticed(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime may list CUDA and still load on the CPU; the session is then refused."""
    original = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])

    def on_cpu(path: str, options: Any, providers: list[str], **_: Any) -> Any:
        return original(path, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", on_cpu)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    with pytest.raises(BackendError, match="onnxruntime chose CPUExecutionProvider"):
        load(sealed, provider="cuda")


def test_an_old_onnxruntime_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The version is compared as numbers, and the upgrade command is given."""
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(__version__="1.9.0"))
    with pytest.raises(BackendError, match=r"1\.9\.0 is older.*to upgrade, run pip"):
        backend.import_onnxruntime("cpu")


@pytest.mark.parametrize(
    ("installed", "first"),
    [
        ((), ""),
        (("onnxruntime",), "pip uninstall -y onnxruntime, then "),
        (("onnxruntime-gpu",), "pip uninstall -y onnxruntime-gpu, then "),
        (("onnxruntime", "onnxruntime-gpu"), "pip uninstall -y onnxruntime onnxruntime-gpu, then "),
    ],
)
def test_no_second_onnxruntime_is_advised(
    sealed: Path, monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...], first: str
) -> None:
    """Both packages hold the same module, so the one that is there goes before the other comes."""
    monkeypatch.setattr(version, "installed_versions", lambda: dict.fromkeys((*installed, "numpy"), "1"))
    with pytest.raises(BackendError) as error:
        load(sealed, provider="cuda")
    assert str(error.value).endswith(f"run {first}pip install 'curconvert[gpu]', or name another provider")


@pytest.mark.parametrize(("provider", "extra"), [("cpu", "curconvert\\[cpu\\]"), ("cuda", "curconvert\\[gpu\\]")])
def test_a_missing_onnxruntime_names_the_extra(monkeypatch: pytest.MonkeyPatch, provider: str, extra: str) -> None:
    """The message holds the command that installs it."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=extra):
        backend.import_onnxruntime(provider)


def test_a_graph_newer_than_onnxruntime_is_a_backend_error(toy: Path) -> None:
    """An opset that this onnxruntime does not know asks for an upgrade, in one line."""
    model = toy_graph(toy / "model.safetensors", "portable")
    model.opset = 99
    (toy / "model.onnx").write_bytes(model.encode())
    reseal(toy)
    with pytest.raises(BackendError, match="upgrade") as caught:
        load(toy, graph="portable")
    assert "\n" not in str(caught.value)


def test_a_broken_graph_leaves_stdout_clean(toy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """onnxruntime's habit of printing and trying other providers is switched off."""
    model = toy_graph(toy / "model.safetensors", "portable")
    model.node[0].op_type = "Sqrt"  # which takes one input
    (toy / "model.onnx").write_bytes(model.encode())
    reseal(toy)
    with pytest.raises(BackendError, match="Sqrt"):
        load(toy, graph="portable")
    assert capfd.readouterr().out == ""


def test_a_failure_while_running_is_a_backend_error(toy: Path) -> None:
    """What onnxruntime raises inside a request comes out as one line."""
    model = toy_graph(toy / "model.safetensors", "portable")
    next(node for node in model.node if "model.positions.weight" in node.input).input[0] = "short"
    model.initializer.append(Tensor.of("short", np.zeros((2, 8), np.float32)))
    (toy / "model.onnx").write_bytes(model.encode())
    reseal(toy)
    with pytest.raises(BackendError, match="onnxruntime failed") as caught:
        load(toy, graph="portable").logits([1, 2, 3])
    assert "\n" not in str(caught.value)


def test_versions_are_plain_json() -> None:
    """The environment record can be written into a report."""
    versions = installed_versions()
    assert versions["numpy"] == np.__version__
    assert json.loads(json.dumps(versions)) == versions


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (None, {"device_id": "0", "enable_cuda_graph": "0", "enable_skip_layer_norm_strict_mode": "1"}),
        (
            CudaOptions(1, 2**30, cuda_graph=True),
            {
                "device_id": "1",
                "enable_cuda_graph": "1",
                "enable_skip_layer_norm_strict_mode": "1",
                "gpu_mem_limit": "1073741824",
                "arena_extend_strategy": "kSameAsRequested",
            },
        ),
    ],
)
def test_cuda_options_reach_the_provider(
    sealed: Path, monkeypatch: pytest.MonkeyPatch, options: CudaOptions | None, expected: dict[str, str]
) -> None:
    """CUDA is the only provider of the session, with these settings. No GPU takes part."""
    found: list[Any] = []

    def recorded(path: str, settings: Any, providers: Any, **_: Any) -> Any:
        found.extend(providers)
        raise RuntimeError("the settings are known")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", recorded)
    with pytest.raises(BackendError):
        load(sealed, provider="cuda", options=options)
    assert found == [("CUDAExecutionProvider", expected)]


@pytest.mark.parametrize("options", [None, CpuOptions(spinning=False, prepack=False)])
def test_cpu_options_reach_the_session(
    sealed: Path, monkeypatch: pytest.MonkeyPatch, options: CpuOptions | None
) -> None:
    """Spinning and prepacking are settings of onnxruntime's session; what it computes stays the same."""
    found: list[Any] = []
    original = onnxruntime.InferenceSession

    def recorded(path: str, settings: Any, **arguments: Any) -> Any:
        found.append(settings)
        return original(path, settings, **arguments)

    monkeypatch.setattr(onnxruntime, "InferenceSession", recorded)
    logits = load(sealed, options=options).logits([1, 2, 3])
    (settings,) = found
    wanted = options or CpuOptions()
    assert settings.get_session_config_entry("session.intra_op.allow_spinning") == str(int(wanted.spinning))
    assert settings.get_session_config_entry("session.disable_prepacking") == str(int(not wanted.prepack))
    np.testing.assert_allclose(logits, load(sealed).logits([1, 2, 3]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wanted", [True, False])
def test_huge_pages_are_no_option_any_more(sealed: Path, wanted: bool) -> None:
    """It is taken, says that it does nothing, and does nothing."""
    with pytest.warns(DeprecationWarning, match="GLIBC_TUNABLES") as caught:
        options = CpuOptions(huge_pages=wanted)
    assert caught[0].filename == __file__
    assert options.prepack == CpuOptions().prepack
    np.testing.assert_array_equal(load(sealed, options=options).logits([5]), load(sealed).logits([5]))


def test_loading_and_answering_leave_the_process_as_it_was(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread of Python's outlives a call, and stdout is the host's all the time."""
    seen: list[Any] = []
    original = onnxruntime.InferenceSession

    def recorded(*arguments: Any, **options: Any) -> Any:
        seen.append(sys.stdout)
        return original(*arguments, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", recorded)
    before = threading.enumerate()
    load(sealed).generate("Hi")
    assert threading.enumerate() == before
    assert seen == [sys.stdout]


@pytest.mark.parametrize(
    ("provider", "options", "message"),
    [("cpu", CudaOptions(), "takes CpuOptions"), ("cuda", CpuOptions(), "takes CudaOptions")],
)
def test_options_of_another_provider_are_refused(sealed: Path, provider: str, options: Any, message: str) -> None:
    """Before anything is read: a GPU's setting on the CPU would be ignored in silence."""
    with pytest.raises(InputError, match=message):
        load(sealed, provider=provider, options=options)


@pytest.mark.parametrize("values", [{"device_id": -1}, {"device_id": True}, {"memory_limit": 0}, {"memory_limit": 1.5}])
def test_cuda_options_without_a_meaning_are_refused(values: dict[str, Any]) -> None:
    """Options are checked when they are made."""
    with pytest.raises(InputError, match=next(iter(values))):
        CudaOptions(**values)


def test_each_batch_is_captured_by_itself(sealed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With CUDA graphs prompts run without one; steps over the same buffers share one, other buffers never do."""
    session = load(sealed, graph="fused")
    monkeypatch.setattr(session, "options", CudaOptions(cuda_graph=True))
    ids: list[str] = []
    inner = session._session

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

        def run_with_iobinding(self, binding: Any, settings: Any) -> None:
            ids.append(settings.get_run_config_entry("gpu_graph_id"))
            inner.run_with_iobinding(binding)

    monkeypatch.setattr(session, "_session", Watched())
    for _ in range(2):
        batch = Decoder(session, [np.array([1, 2]), np.array([3, 4])], 4)
        tokens = batch.prefill().argmax(-1)
        for _ in range(2):
            batch.step(tokens)
        batch.keep([1])
        batch.step(tokens[1:])
    assert ids == ["-1", "1", "1", "2", "-1", "3", "3", "4"]
