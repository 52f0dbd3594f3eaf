"""One run at a time makes an output."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from curconvert.artifact.workspace import workspace_of
from support.workspaces import take_turns


def test_runs_that_come_and_go_never_meet(tmp_path: Path) -> None:
    """Also while one of them removes the folder in which the others look for the lock."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["curconvert.artifact.workspace"])
    receiver, sender = context.Pipe(duplex=False)
    processes = [context.Process(target=take_turns, args=(tmp_path / "out", sender)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
        assert process.exitcode == 0
    assert [receiver.recv() for _ in processes] == [0, 0, 0]
    assert list(tmp_path.iterdir()) == []
    assert not workspace_of(tmp_path / "out").exists()
