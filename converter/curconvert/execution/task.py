"""Defines the protocols of tasks and executors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

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
            tasks: The tasks; each is taken from the iterable only when it can run.

        Raises:
            CurConvertError: A task's own error, or BackendError if tasks cannot run.
        """
        ...
