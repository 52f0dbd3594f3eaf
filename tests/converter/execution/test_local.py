"""Tasks in threads: order, room, threads of the libraries, and the same bytes whatever the number of workers."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from threadpoolctl import threadpool_limits

from curconvert.base.errors import BackendError, InputError
from curconvert.execution.executor import executing
from curconvert.execution.local import LocalExecutor
from curconvert.execution.task import Task
from curconvert.jobs.convert import convert
from curconvert.methods.core.options import ConvertOptions
from curconvert.options.execution import ExecutionOptions
from curconvert.options.source import SourceOptions
from support.command_line import call, refused
from support.families import TinyModel, make_checkpoint
from support.folders import files_of
from support.limits import HANG_SECONDS
from support.tasks import Fails, Sleeps, Threads, counted, library_threads
from support.tiny_runs import tiny_options

METHODS: Mapping[str, dict[str, Any]] = {
    "cur": {},
    "pifa": {},
    "svd-llm": {"sequential": True},
    "fwsvd": {},
    "modegpt": {"rank": None, "density": 0.6},
    "auto": {"rank": None, "keep": 0.8, "rank_multiple": 4, "self_text": 0.0},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Large enough for BLAS to use several threads where it may; no test may change it."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    return make_checkpoint(folder, "llama", num_hidden_layers=2, hidden_size=128, intermediate_size=352)


def asked(method: str, tokens: Path) -> ConvertOptions:
    return tiny_options(tokens, method, targets=None if method == "auto" else _targets(method), **METHODS[method])


def _targets(method: str) -> tuple[str, ...] | None:
    return None if method == "modegpt" else ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")


@pytest.mark.parametrize("method", METHODS)
def test_the_number_of_workers_changes_no_byte(tmp_path: Path, model: TinyModel, tokens: Path, method: str) -> None:
    """Of any file; nor does the number of threads that BLAS has outside of the tasks."""
    found = {}
    for workers, threads in ((1, 1), (2, 4), (3, 2)):
        out = tmp_path / f"out{workers}"
        with threadpool_limits(threads, user_api="blas"):
            convert(
                SourceOptions(str(model.folder)),
                out,
                asked(method, tokens),
                execution=ExecutionOptions("local", workers),
            )
        found[workers] = files_of(out)
    assert found[1] == found[2] == found[3]


def test_another_number_of_workers_goes_on_with_a_journal(tmp_path: Path, model: TinyModel, tokens: Path) -> None:
    """To the same bytes: it is not part of what a conversion is."""
    options, source = asked("cur", tokens), SourceOptions(str(model.folder))

    def stop(stage: str, done: int, _total: int) -> None:
        if (stage, done) == ("compress", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", options, execution=ExecutionOptions(workers=1), progress=stop)
    reports: list[str] = []
    convert(
        source, tmp_path / "out", options, execution=ExecutionOptions(workers=2),
        progress=lambda stage, done, total: reports.append(f"{stage} {done}/{total}"),
    )  # fmt: skip
    assert reports[0] == "compress 2/2"
    convert(source, tmp_path / "whole", options)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_results_are_in_the_order_of_the_tasks() -> None:
    """Although the later ones are finished first."""
    assert LocalExecutor(3).map([Sleeps(0.2), Sleeps(0.1), Sleeps(0.0)]) == [0.2, 0.1, 0.0]


def test_tasks_run_at_the_same_time() -> None:
    """As many as there are workers: each of these two waits for the other."""
    barrier = threading.Barrier(2, timeout=HANG_SECONDS)

    class Meets:
        def run(self) -> int:
            return barrier.wait()

    assert sorted(LocalExecutor(2).map([Meets(), Meets()])) == [0, 1]


def test_no_task_is_taken_before_there_is_a_thread_for_it() -> None:
    """Tasks hold matrices: those that wait would only take memory."""
    taken: list[Task[Any]] = []
    most: list[int] = []
    finished: list[float] = []

    class Records:
        def run(self) -> None:
            most.append(len(taken) - len(finished))
            finished.append(0.0)

    LocalExecutor(2).map(counted([Records() for _ in range(8)], taken))
    assert len(finished) == 8
    assert max(most) <= 2


@pytest.mark.parametrize("workers", [1, 2])
def test_each_task_has_one_thread_and_the_rest_of_the_process_gets_its_own_back(workers: int) -> None:
    """Of each BLAS library and of torch; in this thread, and in threads that are made later."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with threadpool_limits(2, user_api="blas"):
            *blas, own = library_threads()
            assert len(blas) >= 2
            assert set(blas) == {2}
            assert own == 3
            found = LocalExecutor(workers).map([Threads() for _ in range(4)])
            assert found == [[1] * (len(blas) + 1)] * 4
            with pytest.raises(InputError):
                LocalExecutor(workers).map([Fails(InputError("x"))])
            assert library_threads() == [*blas, 3]
            later: list[int] = []
            thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
            thread.start()
            thread.join()
            assert later == [3]
    finally:
        torch.set_num_threads(before)


def test_an_error_ends_the_work() -> None:
    """It is the task's own, and what comes after it is not taken: with one worker nothing, whoever is faster."""
    taken: list[Task[Any]] = []
    error = InputError("model.layers.0.mlp.up_proj.weight: bad")
    with pytest.raises(InputError) as raised:
        LocalExecutor(1).map(counted([Sleeps(0.0), Fails(error), *[Sleeps(0.0)] * 8], taken))
    assert raised.value is error
    assert len(taken) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--executor", "spark"), "--executor 'spark': expected local, ray or ray://HOST:PORT"),
        (("--executor", "ray://"), "--executor 'ray://': expected"),
        (("--executor", "rays"), "--executor 'rays': expected"),
        (("--workers", "0"), "--workers 0: expected an integer of at least 1"),
        (("--executor", "ray://head:10001", "--workers", "2"), "--workers 2: a running cluster chooses"),
    ],
)
@pytest.mark.parametrize("command", ["convert", "sweep"])
def test_a_wrong_choice_is_named(tmp_path: Path, command: str, arguments: tuple[str, ...], words: str) -> None:
    """In one line, before anything is opened."""
    refused(call(command, tmp_path / "none", "-o", tmp_path / "out", *arguments), 2, words)


@pytest.mark.parametrize("command", ["convert", "sweep"])
def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """Before any work, with exit code 6."""
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else real(name))
    result = call(command, tmp_path / "none", "-o", tmp_path / "out", "--executor", "ray")
    refused(result, 6, "--executor ray: ray not installed; run: pip install 'curconvert[cluster]'")
    with pytest.raises(BackendError), executing(ExecutionOptions("ray")):
        pass


def test_the_local_executor_needs_no_ray(
    tmp_path: Path, model: TinyModel, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor imports it."""
    monkeypatch.setitem(sys.modules, "ray", None)
    convert(SourceOptions(str(model.folder)), tmp_path / "out", asked("cur", tokens))
