"""A source file that is replaced or changed while it is read is refused, and nothing is published."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curconvert.artifact.workspace import workspace_of
from curconvert.base.errors import InputError
from curconvert.checkpoint import open_checkpoint
from curconvert.jobs.convert import convert
from curconvert.jobs.export import export
from curconvert.methods.core.options import ConvertOptions
from curconvert.options.calibration import CalibrationOptions
from curconvert.options.source import SourceOptions
from support.checkpoints import shard
from support.families import TinyModel
from support.gguf_files import write_gguf

Change = Callable[[Path], Any]


def replaced(path: Path) -> None:
    """Put another file in the place of one, with the same size and times, as `mv` does."""
    other = path.with_name("other")
    shutil.copy2(path, other)
    content = bytearray(other.read_bytes())
    content[-4] ^= 1
    other.write_bytes(content)
    status = path.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


def rewritten(path: Path) -> None:
    """Change a file in place, within its memory maps."""
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\1\2\3\4")
    os.utime(path, ns=(1, 1))  # two writes within one tick of the clock have the same time


def removed(path: Path) -> None:
    """Delete a file."""
    path.unlink()


CHANGES: dict[str, Change] = {change.__name__: change for change in (replaced, rewritten, removed)}


@pytest.fixture(params=["safetensors", "shard", "gguf"])
def source(request: pytest.FixtureRequest, tiny: Callable[[str], TinyModel], tmp_path: Path) -> tuple[Path, Path]:
    """What is named as the model, and the file to change."""
    folder = tmp_path / "model"
    if request.param == "gguf":
        write_gguf(tmp_path / "model.gguf", tiny("llama"))
        return tmp_path / "model.gguf", tmp_path / "model.gguf"
    shutil.copytree(tiny("llama").folder, folder)
    if request.param == "shard":
        shard(folder)
        return folder, folder / "model-00002-of-00002.safetensors"
    return folder, folder / "model.safetensors"


def changing(change: Change, path: Path, stage: str, step: int) -> Callable[[str, int, int], None]:
    """Return a progress callback that changes a file once, after a step."""

    def progress(reached: str, done: int, _total: int) -> None:
        if (reached, done) == (stage, step):
            change(path)

    return progress


@pytest.mark.parametrize("step", [2, 21])
@pytest.mark.parametrize("change", CHANGES)
def test_an_export_of_a_changed_file_is_refused(
    change: str, step: int, source: tuple[Path, Path], tmp_path: Path
) -> None:
    """After the second tensor, and after the last one."""
    model, file = source
    progress = changing(CHANGES[change], file, "export", step)
    with pytest.raises(InputError, match=rf"{file.name}: another program changed or replaced it") as caught:
        export(SourceOptions(str(model)), tmp_path / "out", progress=progress)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("change", CHANGES)
def test_a_conversion_of_a_changed_file_is_refused(
    change: str, source: tuple[Path, Path], tokens: Path, tmp_path: Path
) -> None:
    """After the first block: nothing is published, and no work remains that another run would continue."""
    model, file = source
    calibration = CalibrationOptions(str(tokens), sequences=4, tokens_per_sequence=24, probe_sequences=2)
    options = ConvertOptions.for_method("cur", rank=8, layers="all", calibration=calibration)
    progress = changing(CHANGES[change], file, "compress", 1)
    with pytest.raises(InputError, match=rf"{file.name}: another program changed or replaced it"):
        convert(SourceOptions(str(model)), tmp_path / "out", options, progress=progress)
    assert not (tmp_path / "out").exists()
    assert not workspace_of(tmp_path / "out").exists()


@pytest.mark.parametrize("change", [replaced, rewritten])
def test_the_hash_is_that_of_the_opened_file(change: Change, source: tuple[Path, Path]) -> None:
    """A changed file has no hash, whether it was hashed before or not."""
    model, file = source
    fresh, hashed = open_checkpoint(model), open_checkpoint(model)
    assert [entry["name"] for entry in hashed.files.hashes()] == [path.name for path in hashed.files]
    change(file)
    for checkpoint in (fresh, hashed):
        with pytest.raises(InputError, match=file.name):
            checkpoint.files.hashes()


def test_other_bytes_with_the_same_identity_are_refused(
    source: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hash at the end is compared with the first one, for file systems whose times are too coarse."""
    model, _ = source
    checkpoint = open_checkpoint(model)
    checkpoint.files.hashes()
    monkeypatch.setattr("curconvert.checkpoint.source_files.cached_sha256", lambda _: "0" * 64)
    with pytest.raises(InputError, match="another program changed"):
        checkpoint.files.hashes()


def test_new_rights_are_no_change(source: tuple[Path, Path]) -> None:
    """`chmod` and a second hard link change the file's status, and not its bytes."""
    model, file = source
    checkpoint = open_checkpoint(model)
    first = checkpoint.files.hashes()
    file.chmod(0o600)
    os.link(file, file.with_name("link"))
    assert checkpoint.files.hashes() == first
