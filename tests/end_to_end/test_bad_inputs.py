"""Bad input on the real command line: the exit code, one clear line, and neither input nor existing output changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from support.bad_checkpoints import BAD, Q_PROJ, Damage, config, header, tensors
from support.command_line import call, refused
from support.families import make_checkpoint
from support.folders import snapshot
from support.tiny_runs import token_file

COMMON = ("--rank", "8", "--layers", "all", "--calibration-tokens", "24", "--probe-sequences", "2")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Make (once per family) a checkpoint that no test may change."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = make_checkpoint(tmp_path_factory.mktemp(family) / "model", family).folder
        return made[family]

    return make


@pytest.fixture
def home(sound: Callable[[str], Path], tmp_path: Path) -> Path:
    """A folder with a sound Llama in `model`, token ids, and in `out` what --overwrite takes for an artifact."""
    folder = tmp_path / "home"
    shutil.copytree(sound("llama"), folder / "model")
    token_file(folder / "ids.safetensors")
    (folder / "out").mkdir()
    (folder / "out" / "curconvert.json").write_text("{}")
    (folder / "out" / "model.safetensors").write_bytes(b"precious")
    return folder


def convert(home: Path, *arguments: str | Path, model: str | Path = "", out: str | Path = "") -> tuple[str | Path, ...]:
    """Return the command that converts `model`, by default into the existing output, which it may replace."""
    ids = home / "ids.safetensors"
    model, out = model or home / "model", out or home / "out"
    return ("convert", model, "-o", out, *COMMON, "--calibration", ids, "--quiet", "--overwrite", *arguments)


@pytest.mark.parametrize("case", BAD)
def test_a_bad_checkpoint_is_refused(case: str, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Folders, configs, indexes, shards, headers, tensors and their values; nothing blocks."""
    damage, code, words = BAD[case]
    damage(home / "model")
    before = snapshot(home)
    result = call(*convert(home))
    refused(result, code, *words)
    assert any(place in result.stderr for place in (str(home / "model"), "config", "tensor", ".weight"))
    assert len(result.stderr) < 900
    assert caplog.text == ""  # a process of its own would print that, too
    assert snapshot(home) == before


BAD_PATHS = {
    "gone.safetensors": 2,
    "gone": 2,
    "a\0b": 2,
    "x" * 300: 2,
    "~nobody-of-that-name/model": 2,
    "README.md": 2,
    "model.bin": 5,
    "model.pth": 5,
    "pipe.safetensors": 2,
    "loop.safetensors": 2,
    "lone.safetensors": 2,
}


@pytest.mark.parametrize("name", BAD_PATHS)
def test_a_bad_path_is_refused(name: str, home: Path) -> None:
    """Missing, unreachable, unreadable, pickled, or without a config beside it: one line, and nothing blocks."""
    folder = home / "files"
    folder.mkdir()
    for file in ("README.md", "model.bin", "model.pth"):
        (folder / file).write_text("x")
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    shutil.copy(home / "model" / "model.safetensors", folder / "lone.safetensors")
    before = snapshot(home)
    refused(call(*convert(home, model=name if name[0] == "~" else f"{folder}/{name}")), BAD_PATHS[name])
    assert snapshot(home) == before


WORKING: dict[str, tuple[str, Damage]] = {
    "heads-wider-than-hidden": ("qwen3", lambda _: None),
    "query-key-value-biases": ("qwen2", lambda _: None),
    "fused-projections": ("phi3", lambda _: None),
    "tied-with-an-equal-head": (
        "llama",
        lambda folder: (
            config(tie_word_embeddings=True)(folder),
            tensors(lambda stored: stored.update({HEAD: stored[EMBEDDING].clone()}))(folder),
        ),
    ),
    "tied-with-another-head": ("llama", config(tie_word_embeddings=True)),
    "zero-matrix": ("llama", tensors(lambda stored: stored[Q_PROJ].zero_())),
    "constant-matrix": ("llama", tensors(lambda stored: stored[Q_PROJ].fill_(0.1))),
    "rank-1-matrix": (
        "llama",
        tensors(lambda stored: stored[Q_PROJ].copy_(torch.outer(torch.linspace(-1, 1, 32), torch.linspace(0, 1, 32)))),
    ),
}


@pytest.mark.parametrize("case", WORKING)
def test_an_unusual_checkpoint_works(case: str, home: Path, sound: Callable[[str], Path]) -> None:
    """It is legal: it converts and verifies, and stays as it was."""
    family, change = WORKING[case]
    shutil.rmtree(home / "model")
    shutil.copytree(sound(family), home / "model")
    change(home / "model")
    before = snapshot(home / "model")
    result = call(*convert(home))
    assert result.exit_code == 0, result.output
    assert snapshot(home / "model") == before


@pytest.mark.parametrize("name", ["Modèle 模型", "with space", "/".join(["deep" * 12] * 8), "[red]", "~"])
def test_an_odd_place_works(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Non-ASCII, spaces, a long path, the home folder; a source and an output that are named so."""
    monkeypatch.setenv("HOME", str(home / "somebody"))
    monkeypatch.chdir(home)
    place = home / "somebody" if name == "~" else home / name
    shutil.copytree(home / "model", place / "model")
    before = snapshot(place / "model")
    result = call(*convert(home, "--no-verify", model=f"{name}/model", out=f"{name}/made"))
    assert result.exit_code == 0, result.output
    assert (place / "made" / "curconvert.json").is_file()
    assert snapshot(place / "model") == before
    assert (home / "~").exists() is False


def test_a_read_only_input_works(home: Path) -> None:
    """No file is written beside the weights."""
    for path in (*(home / "model").iterdir(), home / "model"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = snapshot(home)
    result = call(*convert(home, "--no-verify", out=home / "made"))
    assert result.exit_code == 0, result.output
    assert {name: entry for name, entry in snapshot(home).items() if not name.startswith("made")} == before


BAD_OPTIONS = [
    (("--rank", "0"), "--rank 0"),
    (("--rank", "-2"), "--rank -2"),
    (("--rank", "13", "--targets", "q_proj"), "no selected matrix"),
    (("--rank", "100000", "--targets", "q_proj"), "no selected matrix"),
    (("--method", "auto", "--keep", "0"), "--keep 0"),
    (("--method", "auto", "--keep", "1"), "--keep 1"),
    (("--method", "auto", "--keep", "nan"), "--keep nan"),
    (("--method", "auto", "--keep", "-inf"), "--keep -inf"),
    (("--method", "auto", "--keep", "0.001"), "keep more"),
    (("--method", "auto", "--target-params", "0"), "--target-params 0"),
    (("--method", "auto", "--target-bytes", "1"), "--target-bytes 1"),
    (("--layers", "7"), "--layers 7"),
    (("--layers", "1-0"), "--layers 1-0"),
    (("--layers", ""), "--layers"),
    (("--layers", "angular:2"), "--layers angular:2"),
    (("--layers", "angular"), "--layers angular"),
    (("--targets", "q_porj"), "q_porj"),
    (("--targets", "*"), "--targets: * matches nothing"),
    (("--targets", ""), "--targets is empty"),
    (("--select", "svd"), "--select 'svd'"),
    (("--method", "magic"), "--method 'magic'"),
    (("--dtype", "int4"), "--dtype 'int4'"),
    (("--ridge", "nan"), "--ridge nan"),
    (("--seed", "-1"), "-1"),
    (("--calibration", "missing.txt"), "missing.txt"),
    (("--calibration-tokens", "1"), "tokens_per_sequence"),
    (("--calibration-tokens", "12"), "too short"),
    (("--max-kl", "nan"), "nan"),
    (("--max-kl", "-1"), "-1"),
    (("--config-set", "hidden_size=33"), "hidden size (33)"),
    (("--config", "missing.json"), "missing.json"),
]


@pytest.mark.parametrize("arguments, part", BAD_OPTIONS, ids=[" ".join(a) for a, _ in BAD_OPTIONS])
def test_a_bad_option_is_refused(home: Path, arguments: tuple[str, ...], part: str) -> None:
    """The line names the option, or what it asked for."""
    before = snapshot(home)
    # A method's own size replaces the common one.
    words = [
        word for word in convert(home) if "auto" not in arguments or word not in ("--rank", "8", "--layers", "all")
    ]
    refused(call(*words, *arguments), 2, part)
    assert snapshot(home) == before


def test_a_density_outside_its_range_is_refused(home: Path) -> None:
    """0, 1 and NaN, which no comparison finds."""
    before = snapshot(home)
    words = [word for word in convert(home) if word not in ("--rank", "8")]
    for value in ("0", "1", "nan"):
        refused(call(*words, "--density", value), 2, f"--density {float(value)}")
    assert snapshot(home) == before


@pytest.mark.parametrize("method, rank", [("cur", 14), ("cur", 100_000), ("svd", 9999)])
def test_a_rank_above_break_even_grows_no_matrix(home: Path, method: str, rank: int) -> None:
    """What would hardly shrink stays dense and the plan says why; the others get less than was asked for."""
    before = snapshot(home / "model")
    words = [word for word in convert(home, "--targets", "all", "--no-verify", "--json") if word != "--quiet"]
    result = call(*words, "--method", method, "--rank", str(rank))
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)["plan"]
    dense = [matrix for matrix in plan["matrices"] if matrix["form"] == "dense"]
    assert {matrix["reason"] for matrix in dense} == {f"rank {rank} would save less than 5%"}
    assert len(dense) < len(plan["matrices"])
    assert all(matrix["parameters_after"] <= matrix["parameters_before"] for matrix in plan["matrices"])
    assert snapshot(home / "model") == before


def test_bfloat16_runs_on_the_cpu(home: Path) -> None:
    """16 bits are a storage type: the artifact verifies with the CPU provider."""
    before = snapshot(home / "model")
    result = call(*convert(home, "--dtype", "bfloat16"))
    assert result.exit_code == 0, result.output
    assert call("verify", home / "out", "--provider", "cpu", "--quiet").exit_code == 0
    assert snapshot(home / "model") == before


def _file(path: Path) -> None:
    path.write_bytes(b"precious")


def _folder(path: Path) -> None:
    path.mkdir()
    _file(path / "notes.txt")


def _artifact(path: Path) -> None:
    path.mkdir()
    (path / "curconvert.json").write_text("{}")


def _link(path: Path) -> None:
    path.symlink_to(path.parent / "out")


BAD_OUTPUTS: dict[str, tuple[Callable[[Path], object], str, bool, str]] = {
    "artifact": (_artifact, "made", False, "--overwrite"),
    "folder": (_folder, "made", False, "is not empty"),
    "folder-overwrite": (_folder, "made", True, "is no artifact"),
    "file": (_file, "made", False, "is not a folder"),
    "file-overwrite": (_file, "made", True, "is not a folder"),
    "below-a-file": (_file, "made/deeper/out", True, "is a file, not a folder"),
    "link": (_link, "made", True, "symbolic link"),
    "link-to-nothing": (lambda path: path.symlink_to(path.parent / "gone"), "made", False, "symbolic link"),
    "input": (lambda _: None, "model", True, "overlap"),
    "inside-input": (lambda _: None, "model/deeper/out", True, "overlap"),
    "around-input": (lambda _: None, ".", True, "overlap"),
    "input-by-another-name": (lambda path: path.symlink_to(path.parent / "model"), "made/out", True, "overlap"),
    "long": (lambda _: None, "x" * 300, False, "too long"),
}


@pytest.mark.parametrize("command", ["convert", "export"])
@pytest.mark.parametrize("case", BAD_OUTPUTS)
def test_a_bad_output_is_refused(case: str, command: str, home: Path) -> None:
    """What stands there stays, with --overwrite too unless it is an artifact."""
    make, out, overwrite, part = BAD_OUTPUTS[case]
    make(home / "made")
    before = snapshot(home)
    words = ("--calibration", home / "ids.safetensors", *COMMON) if command == "convert" else ()
    place = home if out == "." else f"{home}/{out}"
    result = call(command, home / "model", "-o", place, "-q", *words, *(["--overwrite"] if overwrite else []))
    refused(result, 2, part)
    assert snapshot(home) == before


def test_an_empty_output_is_filled(home: Path) -> None:
    """Nothing is lost by that."""
    (home / "made").mkdir()
    before = snapshot(home / "model")
    assert call("export", home / "model", "-o", home / "made", "-q").exit_code == 0
    assert (home / "made" / "curconvert.json").is_file()
    assert snapshot(home / "model") == before


@pytest.mark.parametrize("allowed", ["access", "nothing"])
def test_an_output_without_permission_is_refused(home: Path, allowed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the system says so beforehand or only when the folder is made."""

    made = Path.mkdir

    def denied(path: Path, *arguments: Any, **options: Any) -> None:
        if home / "locked" in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        made(path, *arguments, **options)

    (home / "locked").mkdir()
    before = snapshot(home)
    # The super-user, as whom tests may run, is refused nothing.
    if allowed == "access":
        monkeypatch.setattr(Path, "mkdir", denied)
    else:
        monkeypatch.setattr("curconvert.artifact.folder.os.access", lambda *_: False)
    refused(call(*convert(home, out=home / "locked" / "made")), 2, str(home / "locked"), "ermission")
    assert snapshot(home) == before


def test_a_strict_umask_is_kept(home: Path) -> None:
    """The artifact is for its owner alone; the input stays as it was."""
    before = snapshot(home / "model")
    mask = os.umask(0o077)
    try:
        assert call("export", home / "model", "-o", home / "made", "-q").exit_code == 0
    finally:
        os.umask(mask)
    assert all(path.stat().st_mode & 0o077 == 0 for path in (home / "made", *(home / "made").iterdir()))
    assert snapshot(home / "model") == before


@pytest.mark.parametrize("command", [("convert", "--rank", "8"), ("plan", "--rank", "8"), ("export",), ("sweep",)])
def test_every_command_refuses_a_bad_checkpoint(command: tuple[str, ...], home: Path) -> None:
    """In the same line."""
    header([])(home / "model")
    before = snapshot(home)
    out = () if command[0] == "plan" else ("-o", home / "out", "--overwrite")
    refused(call(command[0], home / "model", *command[1:], *out, "--quiet"), 2, "not a valid safetensors file")
    assert snapshot(home) == before
