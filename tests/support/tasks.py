"""Tasks for executors, importable where workers run: some that go wrong, and some that wait to be killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_info

from curconvert.execution.task import Task
from support.limits import HANG_SECONDS


@dataclass(frozen=True)
class Sleeps:
    """Takes its time."""

    seconds: float

    def run(self) -> float:
        time.sleep(self.seconds)
        return self.seconds


@dataclass(frozen=True)
class Threads:
    """Tells how many threads the libraries would use."""

    def run(self) -> list[int]:
        return library_threads()


@dataclass(frozen=True)
class Fails:
    """Raises an error."""

    error: Exception

    def run(self) -> None:
        raise self.error


@dataclass(frozen=True)
class Dies:
    """Kills the process that it runs in, each time."""

    def run(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class WaitsForItsDeath:
    """Tells its process, and waits to be killed; the second time it does the work.

    Attributes:
        work: The task.
        pid_file: Where the first process writes its number.
    """

    work: Task[Any]
    pid_file: Path

    def run(self) -> Any:
        try:
            file = self.pid_file.open("x")
        except FileExistsError:
            return self.work.run()
        with file:
            file.write(f"{os.getpid()}\n")
        time.sleep(HANG_SECONDS)
        raise TimeoutError("nobody killed this process")


def library_threads() -> list[int]:
    """Threads of each BLAS library of this process, and of torch in this thread."""
    blas = [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
    return [*blas, torch.get_num_threads()]


def kill_the_first(pid_file: Path) -> int:
    """Wait for a process that tells its number, kill it, and return the number."""
    for _ in range(20 * HANG_SECONDS):
        text = pid_file.read_text() if pid_file.exists() else ""
        if text.endswith("\n"):
            os.kill(int(text), signal.SIGKILL)
            return int(text)
        time.sleep(0.05)
    raise TimeoutError(f"{pid_file} was not written")


def counted(tasks: Iterable[Task[Any]], taken: list[Task[Any]]) -> Iterable[Task[Any]]:
    """Yield tasks, and tell which were taken."""
    for task in tasks:
        taken.append(task)
        yield task
