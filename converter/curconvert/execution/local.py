"""Runs tasks in threads of this process, one core per task."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, TypeVar

from curconvert.execution.threads import compute, one_blas_thread

if TYPE_CHECKING:
    from curconvert.execution.task import Task

_Result = TypeVar("_Result")


class LocalExecutor:
    """Runs tasks in threads, which works in parallel because LAPACK and torch release Python's lock.

    Args:
        workers: Number of tasks that run at the same time.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def map(self, tasks: Iterable[Task[_Result]]) -> list[_Result]:
        """Run tasks and return their results in order; see `Executor.map`.

        A task is taken only when a thread is free, so that waiting tasks need no memory.
        """
        futures: list[Future[_Result]] = []
        running: set[Future[_Result]] = set()
        with one_blas_thread(), ThreadPoolExecutor(self._workers, "factorize") as pool:
            for task in tasks:
                futures.append(pool.submit(compute, task))
                running.add(futures[-1])
                if len(running) == self._workers:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()  # raises a task's error here
            return [future.result() for future in futures]
