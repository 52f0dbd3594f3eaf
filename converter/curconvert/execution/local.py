"""Tasks in threads of this process, each on one core."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, TypeVar

from curconvert.execution.threads import compute, one_blas_thread

if TYPE_CHECKING:
    from curconvert.execution.task import Task

_Result = TypeVar("_Result")


class LocalExecutor:
    """Runs tasks in threads: LAPACK and torch let go of Python's lock while they work.

    Args:
        workers: Tasks at the same time.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def map(self, tasks: Iterable[Task[_Result]]) -> list[_Result]:
        """Run tasks and return their results in order; see `Executor.map`.

        A task is taken when a thread is free for it, so that no more of them are in memory than are worked on.
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
                        future.result()  # an error ends the work here
            return [future.result() for future in futures]
