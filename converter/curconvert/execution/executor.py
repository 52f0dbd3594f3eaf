"""Chooses what runs the tasks of a conversion. The choice changes its time, but never its bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from curconvert.execution.local import LocalExecutor
from curconvert.execution.task import Executor
from curconvert.options.execution import ExecutionOptions


@contextmanager
def executing(options: ExecutionOptions) -> Iterator[Executor]:
    """Yield the executor; afterwards, stop a cluster that was started for it.

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
