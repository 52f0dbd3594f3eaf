"""One run at a time makes an output, and the next one clears away what a dead one left."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from curconvert.artifact import lock
from curconvert.artifact.folder import atomic_folder, check_output
from curconvert.artifact.lock import workspace_of
from curconvert.artifact.workspace import workspace
from curconvert.base.errors import InputError
from curconvert_runtime.format.files import MANIFEST

Run = Callable[[Path], AbstractContextManager[object]]


def resumable(out: Path) -> AbstractContextManager[object]:
    return workspace(out, {}, resume=True)


def at_once(out: Path) -> AbstractContextManager[object]:
    return atomic_folder(out, overwrite=True)


@pytest.fixture
def killed() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Run a function in a copy of this process, which has to die by SIGKILL."""

    def run(function: Callable[[], None]) -> None:
        child = os.fork()
        if child == 0:
            try:
                function()
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    yield run


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("first", [resumable, at_once])
@pytest.mark.parametrize("second", [resumable, at_once])
def test_two_runs_of_any_command_exclude_each_other(tmp_path: Path, first: Run, second: Run) -> None:
    """The second one is refused at once and leaves the first one's work alone."""
    with first(tmp_path / "out"):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InputError, match=f"another conversion is writing it .process {os.getpid()}"):
            second(tmp_path / "out").__enter__()
        check_output(tmp_path / "out", overwrite=False)
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("after", ["check_output", "atomic_folder"])
def test_a_killed_run_leaves_nothing_to_the_next_one(
    tmp_path: Path, killed: Callable[[Callable[[], None]], None], after: str
) -> None:
    """Its half of an output is gone, also if the next run is refused for another reason."""

    def half() -> None:
        with at_once(tmp_path / "out") as work:
            assert isinstance(work, Path)
            (work / "half").write_text("x")
            die()

    killed(half)
    assert list(tmp_path.rglob("half"))
    if after == "check_output":
        check_output(tmp_path / "out", overwrite=False)
        assert list(tmp_path.iterdir()) == []
    else:
        with atomic_folder(tmp_path / "out") as work:
            assert list(work.iterdir()) == []
            (work / MANIFEST).write_text("new")
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("name", "left"), [("_restore", "new"), ("rename", "old")])
@pytest.mark.parametrize("run", [resumable, at_once])
def test_an_output_that_a_killed_run_had_moved_aside_is_put_back(
    tmp_path: Path, killed: Callable[[Callable[[], None]], None], monkeypatch: pytest.MonkeyPatch, name: str, left: str,
    run: Run,
) -> None:  # fmt: skip
    """Killed between the two renames: the old output. Killed after them: the new one. Never none."""
    out = tmp_path / "out"
    with atomic_folder(out) as work:
        (work / MANIFEST).write_text("old")

    def replacing() -> None:
        with atomic_folder(out, overwrite=True) as fresh:
            (fresh / MANIFEST).write_text("new")
            real = Path.rename
            if name == "rename":
                monkeypatch.setattr(Path, "rename", lambda path, to: die() if path == fresh else real(path, to))
            else:
                monkeypatch.setattr(lock, "_restore", die)

    killed(replacing)
    check_output(out, overwrite=True)
    assert (out / MANIFEST).read_text() == left
    assert list(tmp_path.iterdir()) == [out]


def test_work_that_can_be_resumed_stays(tmp_path: Path) -> None:
    """Another command with the same output removes only what is its own."""
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), workspace(out, {}, resume=True) as space:
        (space.artifact / "done").write_text("x")
        raise KeyboardInterrupt
    with atomic_folder(out) as work:
        (work / MANIFEST).write_text("exported")
    assert (workspace_of(out) / "artifact" / "done").exists()
    with workspace(out, {}, resume=True) as space:
        assert (space.artifact / "done").exists()
