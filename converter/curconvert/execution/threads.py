"""Limits each task to one thread, so that its bytes do not depend on how many tasks run at the same time."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch
from threadpoolctl import ThreadpoolController

if TYPE_CHECKING:
    from curconvert.execution.task import Task

_Result = TypeVar("_Result")


@functools.cache
def _controller() -> ThreadpoolController:
    """Return a controller of this process's BLAS libraries, found once, because the search takes milliseconds."""
    import scipy.linalg  # noqa: PLC0415, F401 - loads its own BLAS library

    return ThreadpoolController()


def blas_kernels() -> str:
    """Return the CPU types whose kernels the BLAS libraries chose."""
    found = _controller().select(user_api="blas").info()
    return ", ".join(sorted({str(library.get("architecture", library["internal_api"])) for library in found}))


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let BLAS calls of this process run on the thread that makes them, until the context ends."""
    threads = torch.get_num_threads()
    try:
        with _controller().limit(limits=1, user_api="blas"):
            yield
    finally:
        # Tasks set it only for their threads, but torch gives the last set number to every new thread.
        torch.set_num_threads(threads)


def compute(task: Task[_Result]) -> _Result:
    """Run a task with one torch thread and return its result. Call it inside `one_blas_thread`."""
    torch.set_num_threads(1)
    return task.run()
