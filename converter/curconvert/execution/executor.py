"""Tasks, and what runs them; the choice changes how long a conversion takes, and never its bytes."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

from curconvert.errors import BackendError, InputError
from curconvert.execution.local import LocalExecutor

_REMOTE = "ray://"
_Result = TypeVar("_Result")
_Result_co = TypeVar("_Result_co", covariant=True)


class Task(Protocol[_Result_co]):
    """One independent piece of work: a frozen dataclass that can be pickled and holds everything it needs."""

    def run(self) -> _Result_co:
        """Compute the result from the fields alone, without a file and without changing them."""
        ...


class Executor(Protocol):
    """Runs tasks, several at a time."""

    def map(self, tasks: Iterable[Task[_Result]]) -> list[_Result]:
        """Run tasks and return their results in order.

        Args:
            tasks: Taken one by one, as there is room for them.

        Raises:
            CurConvertError: A task's own, or BackendError where tasks cannot be run.
        """
        ...


@dataclass(frozen=True)
class ExecutionOptions:
    """Where matrices are factorized and hidden states are kept. Results do not depend on it.

    Attributes:
        executor: `local`, `ray` (a cluster on this machine for as long as the work lasts) or `ray://HOST:PORT` (a
            running cluster, by the address of its client server).
        workers: Tasks at the same time; None is the number of cores that this process may use. A running cluster
            decides by itself.
        memory_limit: Bytes that this process may have resident, as estimated; hidden states go to the disk where that
            is needed for it. None does without.
    """

    executor: str = "local"
    workers: int | None = None
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        if self.executor not in ("local", "ray") and not (self.address and self.address != _REMOTE):
            raise InputError(f"--executor {self.executor!r}: expected local, ray or ray://HOST:PORT")
        if self.workers is not None:
            if isinstance(self.workers, bool) or not isinstance(self.workers, int) or self.workers < 1:
                raise InputError(f"--workers {self.workers}: expected an integer of at least 1")
            if self.address:
                raise InputError(f"--workers {self.workers}: a running cluster decides by itself; leave it out")
        if self.memory_limit is not None and self.memory_limit < 1:
            raise InputError(f"--memory-limit {self.memory_limit}: expected bytes, above 0")

    @property
    def tasks_at_once(self) -> int:
        """Number of tasks that this machine works on at the same time."""
        return self.workers or _cores()

    @property
    def address(self) -> str | None:
        """Address of a running cluster; None where there is none to connect to."""
        return self.executor if self.executor.startswith(_REMOTE) else None

    def check_installed(self) -> None:
        """Refuse what is not installed, before any work.

        Raises:
            BackendError: Ray, or what its client needs, is missing.
        """
        needed = ["ray"] * (self.executor != "local") + ["grpc"] * (self.address is not None)
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
        if missing:
            raise BackendError(
                f"--executor {self.executor}: {' and '.join(missing)} not installed; "
                "run: pip install 'curconvert[cluster]'"
            )


@contextmanager
def executing(options: ExecutionOptions) -> Iterator[Executor]:
    """Yield the executor; a cluster that was started for it is stopped in the end.

    Raises:
        BackendError: Ray cannot be imported, or does not start, or does not answer.
    """
    workers = options.tasks_at_once
    if options.executor == "local":
        yield LocalExecutor(workers)
        return
    options.check_installed()
    from curconvert.execution.cluster import connected  # noqa: PLC0415 - an extra

    with connected(options.address, workers) as executor:
        yield executor


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
