"""One thread for each task: the bytes of a result do not depend on how many tasks run beside it."""

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
    """Find the BLAS libraries of this process, once: it takes milliseconds, and torch's import has loaded them all."""
    import scipy.linalg  # noqa: PLC0415, F401 - brings a BLAS library of its own

    return ThreadpoolController()


def blas_kernels() -> str:
    """Return the processor types for which the BLAS libraries chose their kernels."""
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
        # Tasks set it for their own threads, but torch gives the last number set to every thread that is new.
        torch.set_num_threads(threads)


def compute(task: Task[_Result]) -> _Result:
    """Run a task with one thread of torch; inside `one_blas_thread`."""
    torch.set_num_threads(1)
    return task.run()
