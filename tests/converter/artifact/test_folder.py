"""The output folder: what is refused, and that it is complete or absent."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from curconvert.artifact.folder import SWEEP, atomic_folder, check_output
from curconvert.artifact.lock import workspace_of
from curconvert.base.errors import InputError
from curconvert_runtime.format.files import MANIFEST


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A folder that counts as an existing artifact."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / MANIFEST).write_text("old")
    return folder


def test_a_new_folder_is_accepted(tmp_path: Path) -> None:
    """Parents need not exist."""
    check_output(tmp_path / "a" / "b" / "out", overwrite=False)


def test_an_empty_folder_is_accepted(tmp_path: Path) -> None:
    """There is nothing to lose."""
    check_output(tmp_path, overwrite=False)


def test_an_existing_artifact_needs_overwrite(artifact: Path) -> None:
    """The message names the option."""
    with pytest.raises(InputError, match=r"not empty.*--overwrite"):
        check_output(artifact, overwrite=False)
    check_output(artifact, overwrite=True)


def test_a_folder_without_manifest_is_never_overwritten(tmp_path: Path) -> None:
    """--overwrite replaces artifacts, not somebody's documents."""
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="is no artifact"):
        check_output(tmp_path, overwrite=True)


@pytest.mark.parametrize(
    ("marker", "content", "accepted"),
    [
        (SWEEP.marker, '{"schema": "sweep-1.0"}', True),
        (SWEEP.marker, '{"schema": "another"}', False),
        (MANIFEST, "old", False),
    ],
)
def test_a_sweep_is_replaced_by_a_sweep_only(tmp_path: Path, marker: str, content: str, accepted: bool) -> None:
    """A file's name could be anybody's; what is in it is ours."""
    (tmp_path / marker).write_text(content)
    if accepted:
        check_output(tmp_path, overwrite=True, kind=SWEEP)
        with pytest.raises(InputError, match="is no artifact"):
            check_output(tmp_path, overwrite=True)
    else:
        with pytest.raises(InputError, match="is no sweep"):
            check_output(tmp_path, overwrite=True, kind=SWEEP)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_refused(tmp_path: Path, overwrite: bool) -> None:
    """The output is a folder."""
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(InputError, match="not a folder"):
        check_output(file, overwrite)


def test_a_file_among_the_parents_is_refused(tmp_path: Path) -> None:
    """No folder can be made below a file."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file, not a folder"):
        check_output(tmp_path / "file" / "deep" / "out", overwrite=False)


@pytest.mark.parametrize("target", ["out", "missing"])
def test_a_symbolic_link_is_refused(tmp_path: Path, artifact: Path, target: str) -> None:
    """A rename would replace the link and leave its target behind, also when it leads nowhere."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path / target)
    with pytest.raises(InputError, match="symbolic link"):
        check_output(link, overwrite=True)


def test_a_folder_without_write_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the work, not after it."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match="no permission to create out here"):
        check_output(tmp_path / "out", overwrite=False)


@pytest.mark.parametrize("out", ["model", "model/out", "model/../model", ".", "model/a/b"])
def test_an_output_at_in_or_around_the_input_folder_is_refused(tmp_path: Path, out: str) -> None:
    """Overwriting it would delete the original."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_text("x")
    sources = (tmp_path / "model", tmp_path / "model" / "model.safetensors")
    with pytest.raises(InputError, match="overlap"):
        check_output(tmp_path / out, overwrite=True, sources=sources)


def test_an_output_around_a_file_that_a_link_leads_to_is_refused(tmp_path: Path, artifact: Path) -> None:
    """Links of the input are followed first."""
    (artifact / "model.safetensors").write_text("x")
    (tmp_path / "link.safetensors").symlink_to(artifact / "model.safetensors")
    with pytest.raises(InputError, match="overlap"):
        check_output(artifact, overwrite=True, sources=(tmp_path / "link.safetensors",))


def test_an_output_beside_a_lone_file_is_accepted(tmp_path: Path) -> None:
    """`curconvert model.gguf -o out` in the file's own folder is the usual call."""
    (tmp_path / "model.gguf").write_text("x")
    check_output(tmp_path / "out", overwrite=False, sources=(tmp_path / "model.gguf",))
    check_output(tmp_path / "model", overwrite=False, sources=(tmp_path / "model.gguf",))


def publish(out: Path, text: str = "new", overwrite: bool = False) -> None:
    with atomic_folder(out, overwrite) as work:
        (work / MANIFEST).write_text(text)


def test_the_folder_appears_when_the_context_ends(tmp_path: Path) -> None:
    """Not before, with its parents, and nothing beside it."""
    out = tmp_path / "a" / "out"
    with atomic_folder(out) as work:
        (work / MANIFEST).write_text("new")
        assert not out.exists()
        assert work.parent == workspace_of(out)
    assert (out / MANIFEST).read_text() == "new"
    assert list((tmp_path / "a").iterdir()) == [out]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    """Published in its place."""
    (tmp_path / "out").mkdir()
    publish(tmp_path / "out")
    assert (tmp_path / "out" / MANIFEST).read_text() == "new"


def test_an_artifact_is_replaced_as_a_whole(tmp_path: Path, artifact: Path) -> None:
    """Files of the old one do not linger, nor does its moved copy."""
    (artifact / "old.bin").write_text("old")
    publish(artifact, overwrite=True)
    assert [path.name for path in artifact.iterdir()] == [MANIFEST]
    assert (artifact / MANIFEST).read_text() == "new"
    assert list(tmp_path.iterdir()) == [artifact]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    """No output, no temporary folder, no parent that was made for them."""
    with pytest.raises(error), atomic_folder(tmp_path / "a" / "b" / "out") as work:
        (work / "half").write_text("x")
        raise error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_an_existing_artifact_alone(
    tmp_path: Path, artifact: Path, error: type[BaseException]
) -> None:
    """The old artifact is touched by the last step only."""
    with pytest.raises(error), atomic_folder(artifact, overwrite=True) as work:
        (work / MANIFEST).write_text("new")
        raise error
    assert (artifact / MANIFEST).read_text() == "old"
    assert list(tmp_path.iterdir()) == [artifact]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failing_rename_puts_the_old_artifact_back(
    tmp_path: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """An error or Ctrl-C between the two renames loses nothing."""
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(error):
        publish(artifact, overwrite=True)
    assert (artifact / MANIFEST).read_text() == "old"
    assert list(tmp_path.iterdir()) == [artifact]


def test_an_artifact_that_cannot_be_put_back_is_kept_aside(
    tmp_path: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even then it is not deleted."""
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target == artifact:
            raise OSError
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError):
        publish(artifact, overwrite=True)
    assert [path.read_text() for path in tmp_path.rglob(MANIFEST)] == ["old"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_appeared_in_the_meantime_is_not_replaced(tmp_path: Path, overwrite: bool) -> None:
    """A long conversion checks again before it publishes."""
    out = tmp_path / "out"
    with pytest.raises(InputError), atomic_folder(out, overwrite) as work:
        (work / MANIFEST).write_text("new")
        out.mkdir()
        (out / "letter.txt").write_text("dear")
    assert [path.name for path in out.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("umask", [0o077, 0o022])
def test_the_folder_follows_the_umask(tmp_path: Path, umask: int) -> None:
    """Temporary folders are private; a published one must be readable by whom the umask says."""
    previous = os.umask(umask)
    try:
        publish(tmp_path / "out")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~umask
