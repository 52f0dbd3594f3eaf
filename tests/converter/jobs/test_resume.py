"""Conversions that are interrupted and go on: the same bytes, nothing done twice, nothing mixed up."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curconvert.artifact import fingerprint
from curconvert.artifact.workspace import workspace_of
from curconvert.base.durable import is_full, save_array
from curconvert.base.errors import BackendError, InputError
from curconvert.checkpoint import open_checkpoint
from curconvert.estimate import disk as space
from curconvert.estimate.disk import needed_bytes
from curconvert.jobs.convert import convert
from curconvert.jobs.prepare import first_plan
from curconvert.journal.store import State
from curconvert.methods.core.options import ConvertOptions
from curconvert.options.quantization import Quantization
from curconvert.options.source import SourceOptions
from support.checkpoints import edit_config, edit_tensors
from support.families import TinyModel, make_checkpoint
from support.folders import files_of
from support.killed import convert_in_a_process
from support.tiny_runs import tiny_options, token_file

SETTINGS: Mapping[str, dict[str, Any]] = {
    "cur": {},
    "sequential": {"sequential": True, "layers": "influence:3"},
    "auto": {"rank": None, "keep": 0.9, "rank_multiple": 4},
    "search": {"rank": None, "max_kl": 0.05, "rank_multiple": 4, "self_text": 0.0},
    "soco": {"rank": None, "keep": 0.8, "rank_multiple": 4, "steps": 60},
    "fwsvd": {"self_text": 0.5},
    "modegpt": {"rank": None, "density": 0.6},
    "quantized": {"layers": "2-3", "quantization": Quantization("int4", 32)},
    "mixed": {"quantization": Quantization.of(None, 32, bits_per_weight=7.0)},
}
METHODS = {"sequential": "cur", "search": "auto", "quantized": "pifa", "mixed": "row-id"}


class StopError(Exception):
    """Raised by a progress callback; holds what was reported before."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Six layers; no test may change it."""
    return make_checkpoint(tmp_path_factory.mktemp("deep") / "model", "llama", num_hidden_layers=6)


def asked(kind: str, tokens: Path) -> ConvertOptions:
    return tiny_options(tokens, METHODS.get(kind, kind), **SETTINGS[kind])


def run(model: Path, out: Path, options: ConvertOptions, stop_after: int = 0, **settings: Any) -> list[str]:
    """Convert, and return what was reported; or raise `StopError` after so many reports."""
    calls: list[str] = []

    def progress(stage: str, done: int, total: int) -> None:
        calls.append(f"{stage} {done}/{total}")
        if len(calls) == stop_after:
            raise StopError(calls)

    convert(SourceOptions(str(model)), out, options, progress=progress, **settings)
    return calls


def stop(model: Path, out: Path, options: ConvertOptions, after: int) -> list[str]:
    """Convert until so many reports, and return them."""
    with pytest.raises(StopError) as stopped:
        run(model, out, options, after)
    return stopped.value.args[0]


@pytest.mark.parametrize("kind", ["cur", pytest.param("auto", marks=pytest.mark.slow)])
def test_kills_at_random_instants_change_no_byte(tmp_path: Path, model: TinyModel, tokens: Path, kind: str) -> None:
    """Real processes and SIGKILL before any call that changes the disk, again and again, until one comes through."""
    options, out = asked(kind, tokens), tmp_path / "out"
    total = convert_in_a_process(model.folder, tmp_path / "whole", options)
    assert total is not None
    rng = np.random.default_rng(7)
    killed = 0
    while convert_in_a_process(model.folder, out, options, int(rng.integers(1, total // 2))) is None:
        killed += 1
        if out.exists():  # it was published, and died while it cleaned up
            break
        assert workspace_of(out).is_dir()
    assert killed >= 2
    assert files_of(out) == files_of(tmp_path / "whole")


@pytest.mark.parametrize("kind", SETTINGS)
def test_nothing_is_done_twice(tmp_path: Path, model: TinyModel, tokens: Path, kind: str) -> None:
    """Stopped after every fourth step: each step is reported once, and the bytes are the same."""
    options, out = replace(asked(kind, tokens), self_text=0.0), tmp_path / "out"
    whole = run(model.folder, tmp_path / "whole", options)
    assert len(whole) >= 12
    parts: list[str] = []
    for _ in range(0, len(whole) - 4, 4):
        parts += stop(model.folder, out, options, 4)
        assert not out.exists()
    parts += run(model.folder, out, options)
    assert parts == whole
    assert files_of(out) == files_of(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole"}


def test_the_text_that_the_model_writes_is_kept(tmp_path: Path, model: TinyModel, tokens: Path) -> None:
    """As a whole."""
    options = asked("auto", tokens)
    before = stop(model.folder, tmp_path / "out", options, 24)
    assert before[-2:] == ["sample 23/23", "original 1/6"]
    after = run(model.folder, tmp_path / "out", options)
    assert after[0] == "original 2/6"


CHANGES: Mapping[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "option": (lambda _: None, {"rank": 7}, "another option rank: 8, now 7"),
    "method": (lambda _: None, {"link": "plain"}, 'another option link: "full", now "plain"'),
    "weights": (
        lambda folder: edit_tensors(folder, lambda t: t["model.layers.2.mlp.up_proj.weight"].mul_(2)),
        {},
        "another weight file 1 of 1",
    ),
    "config": (lambda folder: edit_config(folder, rms_norm_eps=1e-3), {}, "another model config"),
    "companion": (
        lambda folder: (folder / "generation_config.json").write_text('{"top_k": 5}'),
        {},
        "another source file generation_config.json",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_conversion_is_not_continued(tmp_path: Path, model: TinyModel, tokens: Path, change: str) -> None:
    """The first difference is named, and the work so far is kept."""
    edit, values, words = CHANGES[change]
    source, out, options = shutil.copytree(model.folder, tmp_path / "model"), tmp_path / "out", asked("cur", tokens)
    stop(source, out, options, 8)
    before = {path: path.read_bytes() for path in workspace_of(out).rglob("*") if path.is_file()}
    edit(source)
    changed = replace(options, method=replace(options.method, **values))
    with pytest.raises(InputError, match=re.escape(words)) as error:
        run(source, out, changed)
    assert "--no-resume" in str(error.value)
    assert {path: path.read_bytes() for path in workspace_of(out).rglob("*") if path.is_file()} == before
    run(source, tmp_path / "fresh", changed)
    run(source, out, changed, resume=False)
    assert files_of(out) == files_of(tmp_path / "fresh")
    assert not workspace_of(out).exists()


def test_of_many_differences_the_method_is_named(tmp_path: Path, model: TinyModel, tokens: Path) -> None:
    """Its own options and the form differ too."""
    stop(model.folder, tmp_path / "out", asked("cur", tokens), 8)
    with pytest.raises(InputError, match='another option method: "cur", now "pifa"'):
        run(model.folder, tmp_path / "out", tiny_options(tokens, "pifa", **SETTINGS["cur"]))


def test_other_tokens_are_named(tmp_path: Path, model: TinyModel) -> None:
    """A calibration file of the same name with another content."""
    options = asked("cur", token_file(tmp_path / "ids.safetensors"))
    stop(model.folder, tmp_path / "out", options, 8)
    token_file(tmp_path / "ids.safetensors", seed=1)
    with pytest.raises(InputError, match="another calibration text"):
        run(model.folder, tmp_path / "out", options)


def test_another_machine_is_named(
    tmp_path: Path, model: TinyModel, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other numbers of threads give other roundings."""
    stop(model.folder, tmp_path / "out", asked("cur", tokens), 8)
    changed = fingerprint.environment() | {"threads": "77"}
    monkeypatch.setattr(fingerprint, "environment", lambda: changed)
    with pytest.raises(InputError, match=r'another environment threads: "\d+", now "77"'):
        run(model.folder, tmp_path / "out", asked("cur", tokens))


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("pattern", "damage", "words"),
    [
        ("journal.json", lambda path: path.write_text(path.read_text()[:-9]), "journal.json: damaged"),
        ("journal.json", lambda path: path.write_text("{}"), "journal.json: damaged"),
        ("journal.json", lambda path: path.write_text("[]"), "journal.json: damaged"),
        ("compress.*.safetensors", _flip, "sha256 differs from journal.json's"),
        ("compress.*.safetensors", Path.unlink, "journal.json: damaged"),
    ],
)
def test_a_damaged_journal_is_refused(
    tmp_path: Path, model: TinyModel, tokens: Path, pattern: str, damage: Callable[[Path], Any], words: str
) -> None:
    """Rather than guessed at; nothing is deleted without being asked to."""
    out, options = tmp_path / "out", asked("cur", tokens)
    stop(model.folder, out, options, 8)
    (path,) = workspace_of(out).glob(pattern)
    damage(path)
    with pytest.raises(InputError, match=re.escape(words)) as error:
        run(model.folder, out, options)
    assert "--no-resume" in str(error.value)
    assert workspace_of(out).is_dir()
    assert len(run(model.folder, out, options, resume=False)) == 12


def test_a_run_that_died_after_it_had_published_is_not_continued(
    tmp_path: Path, model: TinyModel, tokens: Path
) -> None:
    """Its journal is of an artifact that is not there any more."""
    out, options = tmp_path / "out", asked("cur", tokens)
    stop(model.folder, out, options, 12)
    shutil.rmtree(workspace_of(out) / "artifact")
    assert len(run(model.folder, out, options)) == 12


def test_a_run_that_dies_while_it_cleans_up_has_published(tmp_path: Path, model: TinyModel, tokens: Path) -> None:
    """The output is complete, and what is left of the work stands in nobody's way."""
    out, options = tmp_path / "out", asked("cur", tokens)
    total = convert_in_a_process(model.folder, tmp_path / "whole", options)
    assert total is not None
    left = []
    for before_the_end in (0, 3):
        assert convert_in_a_process(model.folder, out, options, total - before_the_end) is None
        assert files_of(out) == files_of(tmp_path / "whole")
        left.append(len(list(workspace_of(out).iterdir())))
        shutil.rmtree(out)
        if before_the_end < 3:  # its removal by the next run would shift the instant of the kill
            shutil.rmtree(workspace_of(out))
    assert left[0] == 0
    assert left[-1] > 0
    assert len(run(model.folder, out, options)) == 12
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole"}


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path, model: TinyModel, tokens: Path) -> None:
    """Whatever its name."""
    folder = workspace_of(tmp_path / "out")
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    for resume in (True, False):
        with pytest.raises(InputError, match="is no folder that curconvert made"):
            run(model.folder, tmp_path / "out", asked("cur", tokens), resume=resume)
    assert [path.name for path in folder.iterdir()] == ["letter.txt"]


def test_a_link_in_its_place_is_refused(tmp_path: Path, model: TinyModel, tokens: Path) -> None:
    """Nothing is written or deleted where it leads."""
    (tmp_path / "elsewhere").mkdir()
    workspace_of(tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is no folder that curconvert made"):
        run(model.folder, tmp_path / "out", asked("cur", tokens))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_two_runs_do_not_share_an_output(tmp_path: Path, model: TinyModel, tokens: Path) -> None:
    """The second one is refused at once, also with --no-resume; the first one comes to its end."""
    out, options = tmp_path / "out", asked("cur", tokens)
    refusals = []

    def progress(stage: str, done: int, _total: int) -> None:
        if (stage, done) == ("compress", 3):
            for resume in (True, False):
                with pytest.raises(InputError, match=rf"another conversion .*process {os.getpid()}\)") as error:
                    convert(SourceOptions(str(model.folder)), out, options, resume=resume)
                refusals.append(error)

    convert(SourceOptions(str(model.folder)), out, options, progress=progress)
    assert len(refusals) == 2
    run(model.folder, tmp_path / "whole", options)
    assert files_of(out) == files_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("kind", "call", "share"),
    [("cur", "pwrite", 0.5), ("cur", "fsync", 0.1), ("cur", "fsync", 0.9), ("auto", "fsync", 0.5)],
)
def test_a_full_disk_can_be_freed(
    tmp_path: Path, model: TinyModel, tokens: Path, monkeypatch: pytest.MonkeyPatch, kind: str, call: str, share: float
) -> None:
    """Wherever it fills up: one line, exit code 6, and the same command goes on to the same bytes."""
    options, out, real = asked(kind, tokens), tmp_path / "out", getattr(os, call)
    count, limit = 0, sys.maxsize

    def full(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count > limit:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    monkeypatch.setattr(os, call, full)
    whole = run(model.folder, tmp_path / "whole", options)
    count, limit = 0, int(share * count)
    with pytest.raises(
        BackendError, match=r"no space left on the disk \(.* free, .*\); free some and run the same command again"
    ):
        run(model.folder, out, options)
    assert not out.exists()
    limit = sys.maxsize
    assert len(run(model.folder, out, options)) < len(whole) or share < 0.5
    assert files_of(out) == files_of(tmp_path / "whole")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize(
    "write",
    [
        lambda path: save_array(path, np.zeros(10**6)),
        lambda path: State({}, {"hidden": [torch.zeros(10**6)]}).save(path),
    ],
    ids=["evidence", "state"],
)
def test_what_is_written_tells_that_the_disk_is_full(write: Callable[[Path], Any]) -> None:
    """By the system's own error number, which NumPy's writes to files lack."""
    with pytest.raises(OSError) as error:
        write(Path("/dev/full"))
    assert is_full(error.value)


def test_a_disk_that_is_too_small_is_refused_first(
    tmp_path: Path, model: TinyModel, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is created; what an unfinished run has taken counts as free."""
    out, options = tmp_path / "a" / "out", asked("cur", tokens)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=50_000_000))
    with pytest.raises(BackendError, match=r"50\.00 MB free, about 64\.\d\d MB needed, so 14\.\d\d MB are missing"):
        run(model.folder, out, options)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    stop(model.folder, out, options, 8)
    (workspace_of(out) / "artifact" / "large").write_bytes(bytes(20_000_000))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=50_000_000))
    stop(model.folder, out, options, 1)


@pytest.mark.parametrize("kind", ["cur", "fwsvd", "auto"])
def test_the_room_that_is_asked_for_is_about_what_is_taken(
    tmp_path: Path, model: TinyModel, tokens: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Never less, and not many times more; graphs and reports have a share of their own."""
    monkeypatch.setattr(space, "_REST", 0)
    checkpoint, options, out = open_checkpoint(model.folder), asked(kind, tokens), tmp_path / "out"
    needed = needed_bytes(checkpoint, first_plan(checkpoint, options), options)
    taken = []

    def progress(*_: Any) -> None:
        files = [path for path in workspace_of(out).rglob("*") if path.suffix in (".npy", ".safetensors")]
        taken.append(sum(path.stat().st_size for path in files))

    convert(SourceOptions(str(model.folder)), out, options, progress=progress)
    # Headers of files: kilobytes, which count here only because the model is tiny.
    headers = 2_000 * len(checkpoint.tensors)
    assert needed / 3 < max(taken) < needed + headers
