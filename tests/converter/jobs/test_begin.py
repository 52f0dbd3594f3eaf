"""The begin token in every command: its windows start with it, the manifest says so, and it can be turned off."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from curconvert import SourceOptions, convert
from curconvert.artifact.workspace import workspace_of
from curconvert.base.errors import InputError
from curconvert.jobs.heal import heal
from curconvert.jobs.parity import check_slices
from curconvert.jobs.resize import resize
from curconvert.methods.core.options import ConvertOptions
from curconvert.options.calibration import CalibrationOptions
from curconvert.options.heal import HealOptions
from curconvert.options.resize import ResizeOptions
from curconvert_runtime import Artifact, VerifyOptions
from curconvert_runtime.format.probes import Probes
from support.command_line import call
from support.families import make_checkpoint
from support.tiny_runs import add_tokenizer, manifest_of

TOKENS = 24


class StopError(Exception):
    """Raised to interrupt a conversion."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose tokenizer adds `<s>`, token 1; texts; artifacts with and without it. No test may change them."""
    folder = tmp_path_factory.mktemp("begin")
    make_checkpoint(folder / "model", "llama", num_hidden_layers=3)
    add_tokenizer(folder / "model", "<s>")
    letters = np.random.default_rng(0).integers(65, 90, 2400)
    (folder / "text.txt").write_text("".join(map(chr, letters)), encoding="utf-8")
    convert(source(folder), folder / "cur", options(folder))
    convert(source(folder), folder / "without", options(folder, begin=False))
    convert(source(folder), folder / "scored", scored(folder))
    return folder


def source(home: Path) -> SourceOptions:
    return SourceOptions(str(home / "model"))


def text(home: Path, **values: Any) -> CalibrationOptions:
    given = {"sequences": 12, "tokens_per_sequence": TOKENS, "probe_sequences": 4, **values}
    return CalibrationOptions(str(home / "text.txt"), **given)


def options(home: Path, *, begin: bool = True, **values: Any) -> ConvertOptions:
    return ConvertOptions.for_method(
        "cur", **{"rank": 8, "layers": "all", "calibration": text(home, begin=begin), **values}
    )


def scored(home: Path) -> ConvertOptions:
    return ConvertOptions.for_method("auto", calibration=text(home), rank_multiple=4, keep=0.9, scored=True)


def first_tokens(artifact: Path) -> set[int]:
    """Every token that a stored probe sequence starts with."""
    probes = Probes.load(Artifact.open(artifact))
    return {*probes.original.ids[:, 0].tolist(), *probes.compressed.ids[:, 0].tolist()}


@pytest.mark.parametrize("name", ["cur", "scored"])
def test_probes_start_with_the_begin_token(home: Path, name: str) -> None:
    """Those that fidelity and parity are measured on, text of the model's own (`auto`) included."""
    assert first_tokens(home / name) == {1}
    assert manifest_of(home / name)["calibration"]["begin"] == 1
    assert manifest_of(home / name)["calibration"]["tokens_per_sequence"] == TOKENS


def test_it_can_be_turned_off(home: Path, tmp_path: Path) -> None:
    """By the option of the command line, which gives what the function gives."""
    words = ["--calibration", home / "text.txt", "--calibration-tokens", TOKENS, "--calibration-sequences", 12]
    words += ["--probe-sequences", 4, "--rank", 8, "--layers", "all", "--no-verify", "--no-begin"]
    result = call("convert", home / "model", "-o", tmp_path / "out", *map(str, words))
    assert result.exit_code == 0, result.output
    calibration = manifest_of(tmp_path / "out")["calibration"]
    assert calibration == manifest_of(home / "without")["calibration"]
    assert calibration["begin"] is None
    assert 1 not in first_tokens(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "words"),
    [("cur", "12 sequences of 24 tokens, each with begin token 1 first"), ("without", "without a begin token")],
)
def test_inspect_shows_it(home: Path, name: str, words: str) -> None:
    """In the line about the calibration."""
    assert words in call("inspect", home / name).stdout


def test_an_artifact_of_an_earlier_version_still_opens(home: Path, tmp_path: Path) -> None:
    """Its manifest has no `calibration.begin`."""
    shutil.copytree(home / "cur", tmp_path / "old")
    manifest = manifest_of(tmp_path / "old")
    del manifest["calibration"]["begin"]
    (tmp_path / "old" / "curconvert.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert "without a begin token" in call("inspect", tmp_path / "old").stdout


@pytest.mark.parametrize(
    ("name", "option", "words"),
    [
        ("cur", [], "tokens that begin with token 1;"),
        ("cur", ["--no-begin"], "tokens: "),
        ("without", [], "tokens: "),
        ("without", ["--begin"], "tokens that begin with token 1;"),
    ],
)
def test_verify_reads_the_text_as_the_artifact_was_calibrated(
    home: Path, name: str, option: list[str], words: str
) -> None:
    """Unless an option says otherwise; the line about fidelity says which."""
    measured = ["--against", home / "model", "--text", home / "text.txt", "--window", "16", "--max-tokens", "64"]
    result = call("verify", home / name, "--no-torch", *measured, *option)
    assert result.exit_code == 0, result.output
    assert f"on text.txt: 4 windows of 16 {words.rstrip(';: ')}" in result.stdout
    assert ("begin with" in result.stdout) == ("begin" in words)


def test_sweep_measures_and_calibrates_with_it(home: Path, tmp_path: Path) -> None:
    """Its artifacts record it, and its table says that the windows start with it."""
    words = ["--calibration", home / "text.txt", "--calibration-tokens", str(TOKENS), "--calibration-sequences", "12"]
    words += ["--probe-sequences", "4", "--text", home / "text.txt", "--window", "16", "--max-tokens", "64"]
    words += ["--keep", "0.8", "--methods", "pifa", "--keep-artifacts"]
    result = call("sweep", home / "model", "-o", tmp_path / "out", *words)
    assert result.exit_code == 0, result.output
    table = json.loads((tmp_path / "out" / "sweep.json").read_text(encoding="utf-8"))
    assert table["text"] == "text.txt: 4 windows of 16 tokens that begin with token 1"
    assert first_tokens(tmp_path / "out" / "pifa-0.8") == {1}


@pytest.mark.parametrize("begin", [True, False])
def test_heal_trains_with_it(home: Path, tmp_path: Path, begin: bool) -> None:
    """The record of the healing says so; probes and calibration stay the artifact's."""
    given = HealOptions(steps=2, warmup=1, evaluate_every=1, batch=4, data=text(home, begin=begin))
    heal(home / "cur", source(home), tmp_path / "out", given)
    manifest = manifest_of(tmp_path / "out")
    assert manifest["healing"]["begin"] == (1 if begin else None)
    assert manifest["calibration"]["begin"] == 1
    assert first_tokens(tmp_path / "out") == {1}


def test_resize_keeps_it(home: Path, tmp_path: Path) -> None:
    """A smaller artifact has the probes and the record of the larger one."""
    resize(home / "scored", tmp_path / "out", ResizeOptions(0.8), verification=VerifyOptions())
    assert manifest_of(tmp_path / "out")["calibration"] == manifest_of(home / "scored")["calibration"]
    assert first_tokens(tmp_path / "out") == {1}


def test_parity_sequences_start_with_it_if_probes_are_few(home: Path, tmp_path: Path) -> None:
    """One probe sequence serves all three, and each of them starts with its first token."""
    convert(source(home), tmp_path / "out", options(home, calibration=text(home, probe_sequences=1)))
    probes = Probes.load(Artifact.open(tmp_path / "out"))
    (row,) = probes.original.ids.tolist()
    assert [ids[:3] for ids in probes.compressed.ids.tolist()] == [[1, row[1], row[2]], [1, *row[2:4]], [1, *row[3:5]]]


def _stopped(model: Path, home: Path, out: Path) -> None:
    """Leave an unfinished conversion of a copy of the model."""
    shutil.copytree(home / "model", model)

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "compress":
            raise StopError

    with pytest.raises(StopError):
        convert(SourceOptions(str(model)), out, options(home), progress=progress)
    assert workspace_of(out).is_dir()


def _another(model: Path) -> None:
    path = str(model / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    tokenizer.save(path)


@pytest.mark.parametrize(
    ("change", "begin", "words"),
    [
        (_another, True, "another begin token: 1, now 2"),
        (add_tokenizer, True, "another begin token: 1, now null"),
        (lambda _: None, False, "another option calibration begin: true, now false"),
    ],
)
def test_a_run_with_another_begin_token_is_not_continued(
    home: Path, tmp_path: Path, change: Callable[[Path], None], begin: bool, words: str
) -> None:
    """The first difference is named."""
    _stopped(tmp_path / "model", home, tmp_path / "out")
    change(tmp_path / "model")
    with pytest.raises(InputError, match=words):
        convert(SourceOptions(str(tmp_path / "model")), tmp_path / "out", options(home, begin=begin))


def _renamed(home: Path, folder: Path) -> SourceOptions:
    """The same weights as a lone file of another name."""
    shutil.copy(home / "model" / "model.safetensors", folder / "weights-v2.safetensors")
    return SourceOptions(str(folder / "weights-v2.safetensors"), config=home / "model" / "config.json")


def test_heal_takes_the_original_under_another_name(home: Path, tmp_path: Path) -> None:
    """Its bytes decide, not the names of its files."""
    given = HealOptions(steps=2, warmup=1, evaluate_every=1, batch=4, data=text(home))
    heal(home / "cur", _renamed(home, tmp_path), tmp_path / "out", given)
    assert manifest_of(tmp_path / "out")["source"] == manifest_of(home / "cur")["source"]


def test_the_comparison_with_the_source_takes_it_under_another_name(home: Path, tmp_path: Path) -> None:
    """`verify --against` a copy whose file has another name."""
    _renamed(home, tmp_path)
    shutil.copy(home / "model" / "config.json", tmp_path / "config.json")
    checks = {check.name: check.passed for check in check_slices(home / "cur", tmp_path / "weights-v2.safetensors")}
    assert checks["source.files"]
    assert all(checks.values())


def test_a_run_goes_on_with_the_original_under_another_name(home: Path, tmp_path: Path) -> None:
    """What the first run finished is not done again."""
    _stopped(tmp_path / "model", home, tmp_path / "out")
    weights = tmp_path / "model" / "model.safetensors"
    weights.rename(weights.with_name("model-00001-of-00001.safetensors"))
    index = {"weight_map": dict.fromkeys(_names(weights.with_name("model-00001-of-00001.safetensors")), "")}
    index["weight_map"] = dict.fromkeys(index["weight_map"], "model-00001-of-00001.safetensors")
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    seen: list[str] = []
    convert(
        SourceOptions(str(tmp_path / "model")), tmp_path / "out", options(home),
        progress=lambda stage, done, total: seen.append(f"{stage} {done}"),
    )  # fmt: skip
    assert "original 1" not in seen
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (home / "cur" / "model.safetensors").read_bytes()


def _names(path: Path) -> list[str]:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return [name for name in header if name != "__metadata__"]
