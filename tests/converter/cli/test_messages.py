"""Messages name what was given, give advice that works, and count like people."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from curconvert.base.counted import counted
from curconvert.base.errors import BackendError, InputError
from curconvert.cli import base
from curconvert.cli.base import require_converter
from curconvert.jobs.export import export
from curconvert.methods.core.options import ConvertOptions
from curconvert.options.quantization import Quantization
from curconvert.options.source import SourceOptions
from support.command_line import call, refused
from support.families import make_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint."""
    return make_checkpoint(tmp_path_factory.mktemp("model") / "model", "llama").folder


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"keep": 0.9, "rank": 64}, "--rank and --keep"),
        ({"target_parameters": 10**6, "density": 0.5}, "--density and --target-params"),
        ({"keep": 0.9, "target_bytes": 10**6}, "--keep and --target-bytes"),
        ({"rank": 8, "density": 0.5, "keep": 0.9}, "--rank and --density and --keep"),
    ],
)
def test_two_sizes_are_named_without_a_method_that_nobody_gave(sizes: dict[str, Any], named: str) -> None:
    """What was given is what is wrong."""
    with pytest.raises(InputError, match=named) as error:
        ConvertOptions.for_method(**sizes)
    assert "--method" not in str(error.value)


@pytest.mark.parametrize(("present", "extras"), [(True, "convert"), (False, "convert,cpu")])
def test_no_second_onnxruntime_is_advised(monkeypatch: pytest.MonkeyPatch, present: bool, extras: str) -> None:
    """The extra `cpu` would overwrite an onnxruntime-gpu that is there."""
    find, missing = importlib.util.find_spec, {"torch"} | (set() if present else {"onnxruntime"})
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda name: None if name in missing else find(name))
    with pytest.raises(BackendError, match=rf"torch not installed; run: pip install 'curconvert\[{extras}\]'"):
        require_converter()


@pytest.mark.parametrize("command", ["inspect", "verify", "bench", "resize", "heal", "generate"])
def test_a_model_in_the_place_of_its_artifact_is_an_input_mistake(tmp_path: Path, model: Path, command: str) -> None:
    """The advice is the command that converts it, and this command works."""
    more = {"resize": ("-o", tmp_path / "o", "--keep", "0.5"), "heal": ("-o", tmp_path / "o"), "generate": ("-p", "a")}
    refused(call(command, model, *more.get(command, ())), 2, f"this is a model: run curconvert convert {model} -o OUT")


@pytest.mark.parametrize("command", ["verify", "bench", "heal"])
def test_a_base_without_its_adapter_is_refused(tmp_path: Path, model: Path, command: str) -> None:
    """The option would change nothing, and the user would believe that it did."""
    out = ["-o", tmp_path / "out"] if command == "heal" else []
    refused(call(command, model, "--base", model, *out), 2, f"--base {model}: needs --against")


@pytest.mark.parametrize("command", ["verify", "bench", "heal"])
def test_an_artifact_is_no_adapter_of_a_base(tmp_path: Path, model: Path, command: str) -> None:
    """Nothing is merged into a base, whatever stands in the place of the adapter."""
    artifact = tmp_path / "artifact"
    export(SourceOptions(str(model)), artifact)
    out = ["-o", tmp_path / "out"] if command == "heal" else []
    refused(call(command, model, "--against", artifact, "--base", model, *out), 2, "nothing to merge into a base")


@pytest.mark.parametrize("content", [(), ("notes.txt",), ("sweep.json", "sweep.csv")])
def test_another_folder_is_an_input_mistake(tmp_path: Path, content: tuple[str, ...]) -> None:
    """It is no model, so there is no advice to convert it."""
    for name in content:
        (tmp_path / name).write_text("{}")
    result = call("inspect", tmp_path)
    refused(result, 2, "curconvert.json: missing; give the folder of an artifact")
    assert "convert " not in result.stderr


def test_an_artifact_that_lost_its_manifest_is_damaged(tmp_path: Path, model: Path) -> None:
    """Exit code 4, as for any other file of it."""
    export(SourceOptions(str(model)), tmp_path / "out")
    (tmp_path / "out" / "curconvert.json").unlink()
    refused(call("inspect", tmp_path / "out"), 4, "not a complete curconvert artifact")


@pytest.mark.parametrize(
    ("quantization", "stored"),
    [
        (None, "llama, float32"),
        (Quantization("int8", rounding="nearest"), "llama, int8 in blocks of 32, the rest float32"),
        (Quantization("int4", block_size=32, rounding="nearest"), "llama, int4 in blocks of 32, the rest float32"),
    ],
)
def test_inspect_names_the_stored_types(
    tmp_path: Path, model: Path, quantization: Quantization | None, stored: str
) -> None:
    """A quantized artifact is not called float32."""
    export(SourceOptions(str(model)), tmp_path / "out", quantization=quantization)
    assert stored in call("inspect", tmp_path / "out").stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("number", "expected"), [(0, "0 matrices"), (1, "1 matrix"), (2, "2 matrices"), (1000, "1000 matrices")]
)
def test_one_thing_is_no_things(number: int, expected: str) -> None:
    """1 round, 2 rounds."""
    assert counted(number, "matrix", "matrices") == expected
    assert counted(number, "round") == f"{number} round" + "s" * (number != 1)
